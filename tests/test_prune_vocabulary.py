"""Tokens that a text never uses go: the rest keep their rows, their words and their logits."""

import json
import shutil

import pytest
import torch
import transformers as t
from shaped import VOCABULARY, family
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from exporter.errors import BuildError, JobError
from exporter.stages.prune.tokens import kept_tokens, renumbered
from exporter.stages.prune.vocabulary import check_vocabulary, prune_vocabulary, remember

SPECIAL = ["<pad>", "<unk>", "[CLS]", "[SEP]"]
WORDS = "the quick brown fox jumps over the lazy dog while seven other foxes were watching it and the dogs slept "
OTHER = "Größe größer am größten: zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich "


def tokenizer_of(kind, folder):
    """A tokenizer of a kind, trained on two languages, as transformers finds it in a folder."""
    text = [WORDS, OTHER] * 20
    if kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=220, special_tokens=SPECIAL, show_progress=False)
        made.decoder = decoders.WordPiece()
    elif kind == "unigram":
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        )
        made.decoder = decoders.Metaspace()
    elif kind == "clip":  # BPE of characters, the end of a word marked
        made = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.BpeTrainer(
            vocab_size=200, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False
        )
        made.decoder = decoders.BPEDecoder()
    else:  # as Llama 2's and Gemma's: no pre-tokenizer, what is not known is spelt in bytes
        made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        made.normalizer = normalizers.Replace(" ", "▁")
        special = [*SPECIAL, *(f"<0x{number:02X}>" for number in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        # Without a pre-tokenizer a line would be one word, and be learnt whole.
        text = [word + " " for line in text for word in line.split()]
    made.train_from_iterator(text, trainer)
    ids = [(word, made.token_to_id(word)) for word in SPECIAL]
    if kind == "wordpiece":
        made.post_processor = processors.BertProcessing(ids[3], ids[2])
    else:
        made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids[2:])
    made.add_tokens(["<extra>"])  # beyond the model's own
    t.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    if kind == "bytes":  # the trainer made bytes special; they are ordinary tokens, as in the published ones
        spec = json.loads((folder / "tokenizer.json").read_text())
        spec["added_tokens"] = [one for one in spec["added_tokens"] if not one["content"].startswith("<0x")]
        (folder / "tokenizer.json").write_text(json.dumps(spec))
    return t.AutoTokenizer.from_pretrained(folder)


def model_of(tokenizer, kind="llama", **more):
    torch.manual_seed(0)
    rows = len(tokenizer)
    sizes = {"vocab_size": rows, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"pad_token_id": tokenizer.pad_token_id}
    if kind == "llama":
        ends = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
        made = t.LlamaForCausalLM(t.LlamaConfig(**sizes, **ids, **ends, intermediate_size=64, **more))
    else:
        made = t.BertForMaskedLM(t.BertConfig(**sizes, **ids, intermediate_size=64, **more))
    return made.eval()


def load(folder):
    model, info = t.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not any(info.values()), info
    return model.eval()


def said(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


@pytest.fixture(scope="module")
def pruned(tiny, tmp_path_factory):
    """(the shipped model, the folder of the pruned one, the record)"""
    folder = tmp_path_factory.mktemp("pruned")
    text, model = (tiny / "adapter" / "eval.txt").read_text(encoding="utf-8"), load(tiny)
    record = prune_vocabulary(model, tiny, text, folder)
    model.save_pretrained(folder)
    return load(tiny), folder, record


def test_the_shipped_model(pruned, tiny):
    whole, folder, record = pruned
    small, kept = load(folder), record["kept"]
    assert record["before"] == 2048
    assert record["used"] < record["after"] == len(kept) == small.config.vocab_size < 1400
    assert record["bytes_saved"] == 4 * 256 * (2048 - record["after"])
    assert record["history"][0].startswith(f"dropped {2048 - len(kept)} of 2048 tokens that the text never uses, ")
    assert torch.equal(small.model.embed_tokens.weight, whole.model.embed_tokens.weight[kept])
    assert small.lm_head.weight is small.model.embed_tokens.weight
    text = (tiny / "adapter" / "eval.txt").read_text(encoding="utf-8")
    ours, theirs = (t.AutoTokenizer.from_pretrained(path)(text)["input_ids"] for path in (folder, tiny))
    assert [kept[one] for one in ours] == theirs
    part, same_part = ours[2000:2500], theirs[2000:2500]
    assert (said(small, part) - said(whole, same_part)[:, kept]).abs().max() < 1e-4
    ids = torch.tensor([part[:30]])
    one, other = (small.generate(ids, max_new_tokens=20, do_sample=False, use_cache=cache) for cache in (True, False))
    assert torch.equal(one, other)


def test_any_text_can_be_spelt(pruned, tiny):
    _, folder, _ = pruned
    ours, theirs = t.AutoTokenizer.from_pretrained(folder), t.AutoTokenizer.from_pretrained(tiny)
    for text in (
        "Ein völlig anderer Text, größer als zuvor.",
        "世界 🙂 \x00\x7f ÿ",
        "def f(x):\n\treturn x ** 2\n",
        "",
    ):
        assert ours.decode(ours(text)["input_ids"]) == theirs.decode(theirs(text)["input_ids"]) == text
    messages = [{"role": "user", "content": "Hello"}]
    assert ours.apply_chat_template(messages, tokenize=False) == theirs.apply_chat_template(messages, tokenize=False)


def test_another_text_of_the_kept_tokens_is_cut_the_same(pruned, tiny):
    """Any words whose tokens all stayed, in any order: not only the text that they were taken from."""
    _, folder, record = pruned
    ours, theirs = t.AutoTokenizer.from_pretrained(folder), t.AutoTokenizer.from_pretrained(tiny)
    kept, words = {*record["kept"]}, (tiny / "eval.txt").read_text(encoding="utf-8").split()
    known = [word for word in words if {*theirs(f" {word}")["input_ids"]} <= kept]
    assert len(known) > 3000
    text = " " + " ".join(reversed(known))
    assert ours.tokenize(text) == theirs.tokenize(text)


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "clip", "bytes"])
def test_tokenizers_of_every_kind(kind, tmp_path):
    for name in ("whole", "small"):
        (tmp_path / name).mkdir()
    old = tokenizer_of(kind, tmp_path / "whole")
    model = model_of(old, "bert" if kind == "wordpiece" else "llama")
    before = remember(model, tmp_path / "whole", WORDS)
    whole = {name: weight.clone() for name, weight in model.state_dict().items()}
    record = prune_vocabulary(model, tmp_path / "whole", WORDS, tmp_path / "small")
    kept, new = record["kept"], t.AutoTokenizer.from_pretrained(tmp_path / "small")
    assert record["after"] < record["before"] == len(old)
    for text in (WORDS, "other dogs watching the fox <extra> jumps", "the dog\u4e16"):
        assert new.tokenize(text) == old.tokenize(text)
        assert [kept[one] for one in new(text)["input_ids"]] == old(text)["input_ids"]  # [CLS] and [SEP] with them
    known = "zwölf größer Boxkämpfer"  # words of the other language that have no token now are spelt in letters
    assert new.decode(new(known)["input_ids"]) == old.decode(old(known)["input_ids"])
    assert new.unk_token_id not in new(known)["input_ids"]
    for word in (*SPECIAL, "<extra>"):
        assert kept[new.convert_tokens_to_ids(word)] == old.convert_tokens_to_ids(word)
    for name, weight in model.state_dict().items():
        expected = whole[name][kept] if weight.shape != whole[name].shape else whole[name]
        assert torch.equal(weight, expected)
    assert model.config.pad_token_id == new.pad_token_id
    model.save_pretrained(tmp_path / "small")
    again, info = type(model).from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not any(info.values()), info
    assert check_vocabulary(before, again.eval(), tmp_path / "small", kept, WORDS) < 1e-5


def test_an_untied_head_and_what_configurations_name(tmp_path, tiny):
    text = (tiny / "calib.txt").read_text(encoding="utf-8")[:2000]
    config = t.LlamaConfig.from_pretrained(tiny, tie_word_embeddings=False, num_hidden_layers=1)
    torch.manual_seed(0)
    config.pad_token_id, config.eos_token_id = 2047, [0, 1999]
    model = t.LlamaForCausalLM(config).eval()
    model.generation_config.suppress_tokens = [1, 2000, 1999]
    model.generation_config.pad_token_id = -1
    heads = model.lm_head.weight.clone()
    record = prune_vocabulary(model, tiny, text, tmp_path)
    kept = record["kept"]
    assert {2047, 1999} <= {*kept}
    assert model.config.pad_token_id == model.model.embed_tokens.padding_idx == kept.index(2047)
    assert model.config.eos_token_id == [0, kept.index(1999)]
    assert model.generation_config.suppress_tokens == [1, kept.index(1999)]
    assert model.generation_config.pad_token_id == -1
    assert torch.equal(model.lm_head.weight, heads[kept])


def test_a_row_without_a_token_that_a_configuration_names(tmp_path, tiny):
    config = t.LlamaConfig.from_pretrained(tiny, vocab_size=2056, pad_token_id=2050, num_hidden_layers=1)
    model = t.LlamaForCausalLM(config).eval()
    record = prune_vocabulary(model, tiny, "Hello, world", tmp_path)
    assert record["kept"][-1] == 2050
    assert model.config.pad_token_id == record["after"] - 1 == len(t.AutoTokenizer.from_pretrained(tmp_path))


def test_files_that_speak_of_the_old_numbers_go(tmp_path, tiny):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, tmp_path / name)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"] = {"2": {"content": "<|im_end|>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    model = t.LlamaForCausalLM(t.LlamaConfig.from_pretrained(tiny, num_hidden_layers=1)).eval()
    prune_vocabulary(model, tmp_path, "Hello, world", tmp_path)  # in its own place
    assert {path.name for path in tmp_path.iterdir()} == {
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    }  # fmt: skip
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["added_tokens_decoder"] == {
        "2": {"content": "<|im_end|>", "special": True}
    }


def test_the_same_again(pruned, tiny, tmp_path):
    _, folder, record = pruned
    text, model = (tiny / "adapter" / "eval.txt").read_text(encoding="utf-8"), load(tiny)
    assert prune_vocabulary(model, tiny, text, tmp_path) == record
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_the_proof_finds_what_is_broken(pruned, tiny, tmp_path):
    whole, folder, record = pruned
    text, kept = (tiny / "adapter" / "eval.txt").read_text(encoding="utf-8"), record["kept"]
    before, small = remember(whole, tiny, text), load(folder)
    assert check_vocabulary(before, small, folder, kept, text) < 1e-5
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer_config.json").write_bytes((folder / "tokenizer_config.json").read_bytes())
    (tmp_path / "tokenizer.json").write_text(
        json.dumps(spec | {"model": spec["model"] | {"merges": spec["model"]["merges"][50:]}})
    )
    with pytest.raises(BuildError, match=r"^the renumbered tokenizer cuts the text otherwise at its token "):
        check_vocabulary(before, small, tmp_path, kept, text)
    with pytest.raises(BuildError, match=r"^the renumbered tokenizer has the old words under other numbers"):
        check_vocabulary(before, small, folder, kept[::-1], text)
    with torch.no_grad():
        small.model.embed_tokens.weight[kept.index(before.ids[0, 1])] += 1
    with pytest.raises(BuildError, match=r"^LlamaForCausalLM with a smaller vocabulary differs by "):
        check_vocabulary(before, small, folder, kept, text)


def test_a_token_stays_with_all_that_it_is_merged_from():
    merges = [["a", "b"], ["c", "d"], ["ab", "cd"], ["b", "c"], ["a", "bcd"]]
    words = ["a", "b", "c", "d", "ab", "cd", "abcd", "bc", "bcd"]
    spec = {"model": {"type": "BPE", "vocab": {word: n for n, word in enumerate(words)}, "merges": merges}}
    assert kept_tokens(spec, {6}) == [0, 1, 2, 3, 4, 5, 6, 8]  # bcd is no merge's result: an alphabet's letter
    small = renumbered(spec, kept_tokens(spec, {6}))["model"]
    assert small["merges"] == [["a", "b"], ["c", "d"], ["ab", "cd"], ["a", "bcd"]]
    assert small["vocab"] == {"a": 0, "b": 1, "c": 2, "d": 3, "ab": 4, "cd": 5, "abcd": 6, "bcd": 7}


def test_the_lowest_score_stays_in_unigram():
    """An unknown character costs the lowest score and ten: with another lowest, other words would be cut otherwise."""
    pieces = [["<unk>", 0.0], ["a", -2.0], ["b", -3.0], ["rare word", -30.0], ["unused", -5.0]]
    spec = {"model": {"type": "Unigram", "unk_id": 0, "vocab": pieces}}
    assert kept_tokens(spec, {1}) == [0, 1, 2, 3]
    assert renumbered(spec, [0, 1, 2, 3])["model"]["vocab"] == pieces[:4]


def test_what_is_refused(tmp_path, tiny):
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    t.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(tmp_path)
    model = family("llama")
    with pytest.raises(
        BuildError, match=r"^--prune vocabulary knows tokenizers of BPE, .*, and this one is WordLevel$"
    ):
        prune_vocabulary(model, tmp_path, "a", tmp_path)
    with pytest.raises(JobError, match=r"^--prune vocabulary: the text whose tokens are to stay is empty$"):
        prune_vocabulary(load(tiny), tiny, "", tmp_path)
    with pytest.raises(JobError, match=r"^the text whose tokens are to stay spells a special token, id"):
        prune_vocabulary(model, tiny, "a text whose tokens are beyond 96", tmp_path)
    every = "".join(f" {word}" for word in t.AutoTokenizer.from_pretrained(tiny).get_vocab())
    t5 = t.T5ForConditionalGeneration(t.T5Config(vocab_size=VOCABULARY, d_model=16, d_ff=16, num_layers=1)).eval()
    with pytest.raises(BuildError, match=r"^T5ForConditionalGeneration has an encoder and a decoder"):
        prune_vocabulary(t5, tiny, every, tmp_path)
