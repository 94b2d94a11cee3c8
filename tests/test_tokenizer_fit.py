"""A tokenizer is whole and fits its model, whatever its format; what is not right is refused before any work."""

import json

import numpy as np
import pytest
from conftest import rewrite
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AddedToken, AutoTokenizer, BertConfig, ByT5Tokenizer, GPT2Config, PreTrainedTokenizerFast

from exporter.checkpoint.folder import has_tokenizer
from exporter.checkpoint.tokenizer import check_fit, check_ids, read_tokenizer
from exporter.errors import JobError


def tokenizer(model, **special):
    plain = Tokenizer(model)
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, **special)


def words(count=10, **special):
    return tokenizer(models.WordLevel({f"w{number}": number for number in range(count)}, unk_token="w0"), **special)


@pytest.mark.parametrize("config", [GPT2Config, BertConfig])
@pytest.mark.parametrize("files", [{}, {"tokenizer_config.json": {}, "special_tokens_map.json": {"pad_token": "<p>"}}])
def test_no_tokenizer_or_its_settings_alone(tmp_path, config, files):
    """transformers makes one of the configuration: every word is unknown to it, or becomes nothing."""
    config().save_pretrained(tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert set(AutoTokenizer.from_pretrained(tmp_path)("a few words", add_special_tokens=False)["input_ids"]) <= {1}
    with pytest.raises(JobError, match=r"has no tokenizer, or half of one: it knows no word.*copy tokenizer\.json"):
        read_tokenizer(tmp_path, trust=False)
    assert not has_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_half_of_byte_pair_encoding(tmp_path, tiny, name):
    GPT2Config().save_pretrained(tmp_path)
    told = json.loads((tiny / "tokenizer.json").read_text())["model"]
    (tmp_path / name).write_text(json.dumps(told["vocab"]) if name == "vocab.json" else "#version: 0.2\na b\n")
    with pytest.raises(JobError, match=r"the tokenizer of .* cannot be loaded: `vocab` and `merges` must be both"):
        read_tokenizer(tmp_path, trust=False)


def test_words_without_merges(tmp_path):
    tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [])).save_pretrained(tmp_path / "half")
    with pytest.raises(JobError, match="has half a tokenizer: 3 words, and no merges"):
        read_tokenizer(tmp_path / "half", trust=False)
    whole = {
        "characters": models.BPE({"a": 0, "b": 1, "<0x0A>": 2}, []),
        "merged": models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]),
        "looked-up": models.BPE({"a": 0, "b": 1, "ab": 2}, [], ignore_merges=True),
        "pieces": models.Unigram([("<unk>", 0.0), ("ab", -1.0)], 0),
    }
    for name, model in whole.items():
        tokenizer(model).save_pretrained(tmp_path / name)
        assert "ab" in read_tokenizer(tmp_path / name, trust=False).get_vocab() or name == "characters"


def test_a_tokenizer_of_bytes_has_no_file_of_words(tmp_path):
    ByT5Tokenizer().save_pretrained(tmp_path)
    assert check_fit(read_tokenizer(tmp_path, trust=False), tmp_path, 384) == []


def test_embeddings_that_are_padded(tmp_path):
    assert check_fit(words(10), tmp_path, 10) == check_fit(words(10), tmp_path, 64) == []


def test_words_beyond_the_embedding(tmp_path):
    with pytest.raises(JobError, match=r"has a token 9 \(w9\), and the model 9 embeddings: ordinary text holds 'w9'"):
        check_fit(words(10), tmp_path, 9)
    added = words(10)
    added.add_tokens(["Section 5A"])
    with pytest.raises(JobError, match="ordinary text holds 'Section 5A'"):
        check_fit(added, tmp_path, 10)


def test_special_tokens_beyond_the_embedding(tmp_path):
    """gemma-3-1b's <image_soft_token>, CodeLlama-34b's <PRE>: no text of the model's holds them."""
    special = words(10)
    special.add_tokens([AddedToken("<image>", special=True)])
    [note] = check_fit(special, tmp_path, 10)
    assert "tokens that the model has no embedding for: <image>." in note
    with pytest.raises(JobError, match=r"the evaluation's text spells a special token, id 10, and the model has 10"):
        check_ids(10, np.array(special("w1 <image>")["input_ids"]), "the evaluation's text")
    check_ids(10, np.array(special("w1 w2")["input_ids"]), "the evaluation's text")


@pytest.mark.parametrize("name", ["pad_token", "eos_token", "bos_token", "cls_token", "sep_token"])
def test_tokens_that_it_writes_by_itself(tmp_path, name):
    with pytest.raises(JobError, match=rf"a token 10 \(<mine>\).*its {name} is one.*name one that has an embedding"):
        check_fit(words(10, **{name: "<mine>"}), tmp_path, 10)
    assert check_fit(words(10, **{name: "w1"}), tmp_path, 10) == []


def test_an_adapter_s_tokenizer_with_more_than_its_base_s(tmp_path):
    base, grown = words(10), words(10)
    for one in (base, grown):
        one.add_tokens([AddedToken("<image>", special=True)])
    assert len(check_fit(grown, tmp_path, 10, base)) == 1  # the trainer saved the base's own
    grown.add_tokens([AddedToken("<tool>", special=True)])
    with pytest.raises(JobError, match=r"\(<tool>\).*with new tokens, save it with save_embedding_layers=True"):
        check_fit(grown, tmp_path, 10, base)
    assert check_fit(grown, tmp_path, 12, base) == []


def test_a_run_of_a_model_with_half_a_tokenizer(refused, model):
    folder = model(without=("tokenizer.json",))
    assert "tokenizer" in refused("-m", folder)
    folder = model("grown")
    told = json.loads((folder / "tokenizer.json").read_text())
    token = told["added_tokens"][0] | {"id": 2048, "content": "statement", "special": False, "normalized": True}
    rewrite(folder / "tokenizer.json", json.dumps(told | {"added_tokens": [*told["added_tokens"], token]}))
    assert "has a token 2048 (statement), and the model 2048 embeddings" in refused("-m", folder)
