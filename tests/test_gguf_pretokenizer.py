"""The rules by which text is cut into words, and llama.cpp's names for them."""

import json

import numpy as np
import pytest
import transformers
from gguf import GGUFWriter
from gguf_checkpoints import TEXT
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as cut

from exporter.measure.tokenization import TokenizedTexts, compare_tokenizer
from exporter.targets.gguf import pretokenizer
from exporter.targets.gguf.pretokenizer import name_of
from exporter.targets.gguf.runner import GgufDecoder

WHOLE = "Ġmarvelled"  # a token that no merges lead to: it is found where words are looked up before they are merged
BYTES = cut.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = cut.ByteLevel(add_prefix_space=False)
RULES = {
    "gpt-2": (GPT2, False),
    "smollm": (cut.Sequence([cut.Digits(individual_digits=True), GPT2]), False),
    "qwen2": (cut.Sequence([cut.Split(Regex(pretokenizer._QWEN2), "isolated"), BYTES]), False),
    "qwen35": (cut.Sequence([cut.Split(Regex(pretokenizer._QWEN35), "isolated"), BYTES]), False),
    "smaug-bpe": (cut.Sequence([cut.Split(Regex(pretokenizer._LLAMA3), "isolated"), BYTES]), False),
    "llama-bpe": (cut.Sequence([cut.Split(Regex(pretokenizer._LLAMA3), "isolated"), BYTES]), True),
}


@pytest.fixture(scope="module")
def trained():
    """A byte-level BPE whose merges go beyond words: whatever else cuts a text shows in its ids."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = BYTES, decoders.ByteLevel()
    lines = [line[at : at + 40] for line in TEXT.read_text().splitlines() for at in range(0, len(line), 40)]
    odd = ["12 345 6789 II'll I'LL don't DON'T हिन्दी नमस्ते दुनिया a  b   c\n\n\n x!\n\n?? 4 ½ (x)\r\n"] * 200
    letters = cut.ByteLevel.alphabet()
    made.train_from_iterator(
        [*lines, *odd], trainers.BpeTrainer(vocab_size=2500, initial_alphabet=letters, show_progress=False)
    )
    return json.loads(made.to_str())


def with_rules(trained, name):
    """(tokenizer.json, transformers' tokenizer) with the rules that llama.cpp calls so."""
    rules, whole = RULES[name]
    spec = json.loads(json.dumps(trained))
    spec["model"]["ignore_merges"] = whole
    spec["model"]["vocab"][WHOLE] = len(spec["model"]["vocab"])
    spec["pre_tokenizer"] = json.loads(rules.__getstate__())
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    return json.loads(tokenizer.to_str()), transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def vocabulary_file(file, spec, name):
    """A GGUF of a tokenizer, and of the smallest model that llama.cpp loads."""
    writer, width = GGUFWriter(file, "llama"), 32
    tokens = sorted(spec["model"]["vocab"], key=spec["model"]["vocab"].get)
    for add in (writer.add_context_length, writer.add_embedding_length, writer.add_feed_forward_length):
        add(width)
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    square, norms = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"), ("attn", "ffn")
    shapes = {f"blk.0.{one}": (width, width) for one in square} | {f"blk.0.{one}_norm": (width,) for one in norms}
    for tensor, shape in (shapes | {"token_embd": (len(tokens), width), "output_norm": (width,)}).items():
        writer.add_tensor(f"{tensor}.weight", np.ones(shape, np.float32))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges([" ".join(pair) for pair in spec["model"]["merges"]])
    writer.add_add_bos_token(False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("name", RULES)
def test_llama_cpp_cuts_as_the_rules_that_get_its_name_and_as_no_others(name, trained, tmp_path):
    spec, tokenizer = with_rules(trained, name)
    assert name_of(spec) == name
    told = TokenizedTexts.of(tokenizer, TEXT.read_text()[:50_000] + " They marvelled at it.")
    for other in RULES:
        with GgufDecoder(vocabulary_file(tmp_path / f"{other}.gguf", spec, other), 1) as runner:
            [errors] = compare_tokenizer(runner, told).values()
        assert (errors.value == 0) == (other == name), (other, errors.detail)


def changed(trained, **parts):
    spec, _ = with_rules(trained, "gpt-2")
    return spec | {part: json.loads(one.__getstate__()) for part, one in parts.items()}


@pytest.mark.parametrize(
    "rules",
    [
        cut.ByteLevel(add_prefix_space=True),
        BYTES,
        cut.Sequence([cut.Digits(individual_digits=False), GPT2]),
        cut.Sequence([GPT2, cut.Digits(individual_digits=True)]),
        cut.Sequence([cut.Punctuation(), GPT2]),
        cut.Sequence([cut.Split(Regex(pretokenizer._QWEN2), "removed", invert=True), BYTES]),
        cut.Sequence([cut.Split(Regex(pretokenizer._QWEN2 + "|x"), "isolated"), BYTES]),
        cut.Sequence([cut.Split(" ", "isolated"), BYTES]),
        cut.Metaspace(),
    ],
    ids=str,
)
def test_rules_that_are_nearly_those_of_a_name_have_none(rules, trained):
    assert name_of(changed(trained, pre_tokenizer=GPT2)) == "gpt-2"
    assert name_of(changed(trained, pre_tokenizer=rules)) is None


def test_what_else_decides_a_tokens_ids(trained):
    assert name_of(changed(trained, normalizer=normalizers.NFC())) == "gpt-2"
    for normalizer in (normalizers.NFKC(), normalizers.Lowercase(), normalizers.Prepend("x")):
        assert name_of(changed(trained, normalizer=normalizer)) is None
    spec = changed(trained)
    assert name_of(spec | {"pre_tokenizer": None}) is None
    for setting in ({"ignore_merges": True}, {"byte_fallback": True}, {"end_of_word_suffix": "</w>"}):
        assert name_of(spec | {"model": spec["model"] | setting}) is None
    assert name_of(spec | {"model": {"type": "Unigram", "vocab": []}}) is None


def test_only_uncased_word_pieces_are_llama_cpps(tmp_path):
    made = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    for settings, name in (
        ({}, "bert-bge"),
        ({"strip_accents": True}, "bert-bge"),
        ({"lowercase": False}, None),
        ({"strip_accents": False}, None),
        ({"handle_chinese_chars": False}, None),
    ):
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(**settings), cut.BertPreTokenizer()
        assert name_of(json.loads(made.to_str())) == name, settings
    made.pre_tokenizer = cut.Whitespace()
    assert name_of(json.loads(made.to_str())) is None
