"""Perplexity per byte, word, character and sequence: what is counted is the text of the tokens that were scored."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import SMALL, last_json
from hypothesis import given
from hypothesis import strategies as st
from test_quality import Bigram, quiet, text_of
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from exporter.errors import JobError
from exporter.job import Job
from exporter.measure.perplexity import Forms, cover
from exporter.measure.quality import Passages
from exporter.pipeline.covering import check_forms, forms_of
from exporter.report.forms import FORMS, UNITS
from exporter.report.result import Figure
from exporter.tasks.known import TASKS, answer
from exporter.types import FEATURES, GENERATION

pytestmark = pytest.mark.quick

TEXT = "Größe und Maß: 日本語 🙂🙂 two  words\n\nthe end of naïve words. " * 30


class Fast:
    """A tokenizer of the library `tokenizers` as transformers calls it."""

    is_fast = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, text: str, return_offsets_mapping: bool = False) -> dict:
        told = self._tokenizer.encode(text)
        return {"input_ids": told.ids, "offset_mapping": told.offsets}


def byte_level() -> Fast:
    """Each byte is a token: 256 of them."""
    words = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(words, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return Fast(tokenizer)


def trained(vocabulary: int = 400, trim: bool = False, bos: bool = False) -> Fast:
    """A BPE over the text's bytes; GPT-2's leaves the space out of a word's offsets (`trim`), Llama's begins a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    tokenizer.train_from_iterator([TEXT, "other words and nothing else"], trainer)
    if trim:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>" if bos == "both" else "<s> $A", special_tokens=[("<s>", 0)]
        )
    return Fast(tokenizer)


def test_bytes_that_stand_in_for_unknown_letters_are_counted_once():
    """As sentencepiece's: white space is a letter, one more begins the text, and unknown letters are bytes."""
    pieces = ["<unk>", *(f"<0x{number:02X}>" for number in range(256)), *"▁abcdefghijklmnopqrstuvwxyz"]
    words = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(words, [], byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    told = tokenizer.encode(TEXT)
    covered = cover(TEXT, told.offsets, UNITS)
    assert covered["byte"].tolist() == [0, *[1] * len(TEXT.encode())]  # what begins the text is none of it
    assert covered["character"].sum() == pytest.approx(len(TEXT))
    assert covered["word"].sum() == pytest.approx(len(TEXT.split()))


class Uniform:
    """Every token of a vocabulary is as likely as any other."""

    engine = "uniform"

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary

    def logits(self, ids):
        return np.zeros((len(ids), self._vocabulary), np.float32)


def measured(tokenizer: Fast, vocabulary: int, tokens: int, window: int, stride: int):
    """The figures of the uniform model, and what the forms say that they are of."""
    passages = TASKS[GENERATION].read(tokenizer, TEXT, tokens, window, stride)
    forms = forms_of(tokenizer, TEXT, passages, FORMS)
    nll = answer(Uniform(vocabulary), passages, quiet).nll
    return forms.figures(nll), forms.about(), len(nll), passages


def value(figures, name):
    return figures[name].value


def test_of_a_uniform_model_the_perplexity_per_byte_is_known():
    """Bytes as tokens: it is the vocabulary, 256, and 8 bits for each. No cut through a character changes that."""
    for tokens, window, stride in ((300, 64, 32), (301, 64, 64), (302, 50, 50), (303, 17, 17)):
        figures, about, scored, _ = measured(byte_level(), 256, tokens, window, stride)
        assert about["bytes"] == scored
        assert value(figures, "ppl_byte") == pytest.approx(256, rel=1e-6)
        assert value(figures, "bits_per_byte") == pytest.approx(8, rel=1e-6)
        assert value(figures, "ppl_sequence") == pytest.approx(256, rel=1e-6)
        assert figures["ppl_byte"].se == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("how", [{}, {"trim": True}, {"bos": True}])
@pytest.mark.parametrize(("window", "stride"), [(64, 32), (64, 64), (33, 33)])
def test_of_any_tokenizer_it_is_the_vocabulary_to_the_power_of_tokens_per_byte(how, window, stride):
    """Bytes are counted by hand: those that the scored tokens decode to."""
    tokenizer = trained(**how)
    figures, about, scored, passages = measured(tokenizer, 400, 200, window, stride)
    skipped = set(range(0, 200, window)) if window == stride else {0}
    own = [token for at, token in enumerate(passages.ids) if at not in skipped]
    letters = "".join(tokenizer._tokenizer.id_to_token(token) for token in own)  # each is a byte
    assert scored == len(own) == 200 - len(skipped)
    assert abs(about["bytes"] - len(letters)) <= 2 * len(skipped)  # a character that a window's edge cuts
    assert value(figures, "ppl_byte") == pytest.approx(math.exp(scored * math.log(400) / about["bytes"]), rel=1e-6)
    bits = scored * math.log2(400) / about["bytes"]
    assert value(figures, "bits_per_byte") == pytest.approx(bits, rel=1e-6)


def test_two_tokenizers_of_one_text_are_compared_by_the_byte():
    """One distribution over texts, seen through two tokenizers: per byte it is one number, per token it is not.

    Bytes that are all as likely have 8 bits each, so a token of n bytes has 8 n.
    """
    bpe = trained()
    passages = TASKS[GENERATION].read(bpe, TEXT, 10_000, 128, 64)
    sizes = np.array([len(bpe._tokenizer.id_to_token(token)) for token in passages.ids])
    forms = forms_of(bpe, TEXT, passages, FORMS)
    nll = math.log(256) * sizes[1:].astype(float)
    figures = forms.figures(nll)
    bytewise, _, _, alone = measured(byte_level(), 256, 10_000, 128, 64)
    assert len(passages.ids) < len(alone.ids) / 1.5
    assert value(figures, "ppl_byte") == pytest.approx(value(bytewise, "ppl_byte"), rel=1e-6)
    assert math.exp(nll.mean()) > 2 * 256  # per token
    # Each has left its own first token out, of one byte and of some: what is counted is what was scored.
    assert forms.about()["bytes"] == len(TEXT.encode()) - sizes[0]
    assert figures["ppl_byte"].se == pytest.approx(0, abs=1e-3)


def test_words_and_characters_are_the_texts():
    tokenizer = trained(trim=True)
    passages = TASKS[GENERATION].read(tokenizer, TEXT, 10_000, 4096, 4096)
    begin = tokenizer._tokenizer.encode(TEXT).offsets[0][1]
    about = forms_of(tokenizer, TEXT, passages, UNITS).about()
    assert about["characters"] == pytest.approx(len(TEXT) - begin)
    whole, first = TEXT.split(), len(TEXT.split()[0])
    assert about["words"] == pytest.approx(len(whole) - len(TEXT[:begin].encode()) / len(whole[0].encode()))
    assert first >= begin


def test_a_special_token_that_the_tokenizer_writes_covers_nothing():
    text = "ab cd"
    spans = [(0, 0), (0, 2), (2, 5), (0, 0)]
    covered = cover(text, spans, UNITS)
    assert covered["byte"].tolist() == [0, 2, 3, 0]
    assert covered["word"].tolist() == pytest.approx([0, 1, 1, 0])


def test_tokens_of_one_character_share_its_bytes_and_a_space_outside_of_offsets_is_the_words():
    covered = cover("a 🙂b", [(0, 1), (2, 3), (2, 3), (2, 3), (3, 4)], UNITS)
    assert covered["byte"].tolist() == [1, 2, 1, 2, 1]
    assert covered["character"].tolist() == pytest.approx([1, 1.25, 0.25, 0.5, 1])
    assert covered["word"].tolist() == pytest.approx([1, 0.2, 0.2, 0.4, 0.2])


@given(st.text(max_size=60), st.lists(st.integers(0, 60), max_size=20))
def test_all_tokens_together_cover_the_text_once(text, cuts):
    ends = sorted({*(min(cut, len(text)) for cut in cuts), len(text)})
    spans = list(zip([0, *ends[:-1]], ends, strict=True))
    covered = cover(text, spans, UNITS)
    assert covered["byte"].sum() == len(text.encode("utf-8", "surrogatepass"))
    assert covered["character"].sum() == pytest.approx(len(text))
    assert covered["word"].sum() == pytest.approx(len(text.split()))
    assert all((counts >= -1e-9).all() for counts in covered.values())


def test_a_sequence_is_a_window_and_their_perplexities_are_averaged():
    passages = Passages(GENERATION, text_of(200).ids, np.array([0, 200]), 64, 64)
    forms = forms_of(SimpleNamespace(is_fast=False), "", passages, ["sequence"])
    nll = answer(Bigram(), passages, quiet).nll
    own = [math.exp(part.mean()) for part in np.split(nll, [63, 126, 189])]
    figure = forms.figures(nll)["ppl_sequence"]
    assert figure.value == pytest.approx(np.mean(own))
    assert figure.se == pytest.approx(np.std(own, ddof=1) / 2)
    assert forms.about() == {"sequences": 4}


def test_the_standard_error_is_that_of_a_ratio():
    """By many texts that are drawn anew: the spread of the figure is what one text's error says."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        sizes = rng.integers(1, 9, 500).astype(float)
        nll = rng.gamma(2.0, 0.4 * sizes)
        found.append(Forms({"byte": sizes}, None).figures(nll)["ppl_byte"])
    spread = np.std([figure.value for figure in found])
    assert np.mean([figure.se for figure in found]) == pytest.approx(spread, rel=0.1)
    one = Forms({"byte": np.ones(500)}, None).figures(nll)["ppl_byte"]  # per token it is the tokens' own
    assert one.se == pytest.approx(math.exp(nll.mean()) * nll.std(ddof=1) / math.sqrt(500))


def test_what_no_number_can_hold_has_a_reason_and_no_value():
    """A text without white space is one word: that is no failure of an artifact's."""
    forms = Forms({"word": np.eye(1, 400)[0], "byte": np.ones(400)}, np.zeros(400, np.int64))
    figures = forms.figures(np.full(400, 5.0))
    assert (figures["ppl_word"].value, figures["ppl_word"].se) == (None, None)
    assert figures["ppl_word"].detail == "beyond the largest number: 2000 nats per word"
    assert figures["ppl_byte"].value == pytest.approx(math.exp(5))
    wrong = forms.figures(np.full(400, np.inf))
    assert [wrong[name].value for name in ("ppl_word", "ppl_byte", "ppl_sequence")] == [None] * 3
    assert "bits_per_byte" not in wrong
    [nothing] = Forms({"word": np.zeros(9)}, None).figures(np.ones(9)).values()
    assert nothing == Figure(detail="the scored tokens cover no text")


def test_they_go_through_the_file(tmp_path):
    forms = Forms({"byte": np.array([1.0, 2.5])}, np.array([0, 1]))
    forms.save(tmp_path / "perplexity.npz")
    again = Forms.load(tmp_path / "perplexity.npz")
    assert set(again.counts) == {"byte"}
    assert again.figures(np.ones(2)) == forms.figures(np.ones(2))
    Forms({"word": np.ones(2)}, None).save(tmp_path / "one.npz")
    assert Forms.load(tmp_path / "one.npz").sequences is None


def test_what_cannot_be_asked_is_refused(tmp_path):
    job = Job(model="m", output=tmp_path, perplexity="byte")
    assert job.perplexity == ("byte",)
    check_forms(job, GENERATION)
    with pytest.raises(JobError, match=r"^--perplexity byte is of models that continue a text, and this one is for"):
        check_forms(job, FEATURES)
    with pytest.raises(JobError, match="SimpleNamespace does not tell"):
        forms_of(SimpleNamespace(is_fast=False), "", text_of(100), ["byte"])
    assert forms_of(SimpleNamespace(is_fast=False), "", text_of(100), ["token"]) is None


@pytest.mark.program
def test_another_task_is_refused_before_work(refused):
    line = refused("-m", "tiny", "--task", FEATURES, "--perplexity", "byte")
    assert "--perplexity byte is of models that continue a text, and this one is for feature-extraction" in line


@pytest.mark.program
def test_a_run_and_bench_have_them(run_here, out, tmp_path):
    forms = [word for form in FORMS for word in ("--perplexity", form)]
    given = ("run", "-m", "tiny", *SMALL, "-t", "onnx:int8-weight", "--policy", "off", "--no-generation", "-o", out)
    report = last_json(run_here(*given, "--window", 64, "--stride", 64, *forms, "--format", "json"))
    reference, artifact = report["results"]
    told = report["evaluation"]["perplexity"]
    assert report["evaluation"]["tokens_scored"] == 256 - 4
    assert told["covered"]["sequences"] == 4
    assert told["figures"]["ppl_byte"] == reference["quality"]["ppl_byte"]
    nats = 252 * math.log(reference["quality"]["ppl"]["value"])
    for unit in UNITS:
        assert reference["quality"][f"ppl_{unit}"]["value"] == pytest.approx(
            math.exp(nats / told["covered"][f"{unit}s"]), rel=1e-6
        )
        assert artifact["quality"][f"ppl_{unit}"]["value"] > 1
        assert artifact["quality"][f"ppl_{unit}"]["se"] > 0
    assert not [gate["name"] for gate in artifact["gates"] if "byte" in gate["name"]]
    assert artifact["generation"]["greedy_agreement"] is None
    markdown, page = ((out / name).read_text(encoding="utf-8") for name in ("report.md", "report.html"))
    assert "| PPL byte | PPL character | PPL sequence |" in markdown
    assert "the scored tokens cover" in page
    again = last_json(run_here("bench", out, "--format", "json"))
    assert again["evaluation"]["perplexity"] == told
    for name in (*(f"ppl_{form}" for form in FORMS), "bits_per_byte"):
        one, other = ([row["quality"][name] for row in it["results"]] for it in (report, again))
        assert one == other, json.dumps([one, other])
