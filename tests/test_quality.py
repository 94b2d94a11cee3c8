"""bench/quality and bench/gates against what can be computed by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.measure.gates import judge
from exporter.measure.probe import compare_probe
from exporter.measure.quality import Passages, Reference
from exporter.pipeline.asking import _alone
from exporter.report.result import Figure, Result
from exporter.runner import Floats, Ids
from exporter.tasks.known import answer, compare
from exporter.tasks.text_generation import windows
from exporter.types import CLASSIFICATION, FEATURES, GENERATION, SINGLE_LABEL, Gates, Probe

pytestmark = pytest.mark.quick

VOCABULARY = 600


def quiet(done: int, total: int) -> None:
    assert 0 < done <= total


class Bigram:
    """A real language model of the smallest kind: logits that depend on the last token alone, optionally disturbed."""

    engine = "bigram"

    def __init__(self, noise: float = 0.0) -> None:
        table = np.random.default_rng(0).normal(size=(VOCABULARY, VOCABULARY)) * 2
        disturbance = np.random.default_rng(1).normal(size=table.shape) * noise
        self.table = (table + disturbance).astype(np.float32)

    def __enter__(self) -> Bigram:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def logits(self, ids: Ids) -> Floats:
        result: Floats = self.table[ids]
        return result


def text_of(count: int) -> Passages:
    """Tokens drawn from the undisturbed model itself, so that it is the better one."""
    rng, table = np.random.default_rng(2), Bigram().table.astype(np.float64)
    ids = [0]
    while len(ids) < count:
        weights = np.exp(table[ids[-1]])
        ids.append(int(rng.choice(VOCABULARY, p=weights / weights.sum())))
    return Passages(GENERATION, np.array(ids), np.array([0, count]), 64, 32)


def exact_log_probabilities(model: Bigram, ids: Ids) -> np.ndarray:
    logits = model.table[ids].astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


NO_PROBE = Probe(np.zeros((1, 1), np.int64), np.ones((1, 1), np.int64), np.zeros((1, 1, VOCABULARY), np.float32))


@given(st.integers(2, 3000), st.integers(2, 600), st.data())
def test_every_token_but_the_first_is_scored_once_with_as_much_context_as_there_is(tokens, window, data):
    stride = data.draw(st.integers(1, window))
    scored = []
    for begin, end, first in windows(tokens, window, stride):
        assert end - begin <= window
        assert begin < first
        # The full window on the left, but for the stride's step: what was scored before lies inside this window.
        assert first == 1 or first - begin >= min(window, tokens) - stride
        scored += range(first, end)
    alone = range(0, tokens, window) if stride == window else [0]  # nothing stands before a window's first token
    assert scored == [token for token in range(tokens) if token not in alone]


def test_windows_that_do_not_overlap_leave_their_first_tokens_out():
    """By hand: of each window of 64 the scores of 63 tokens, each with its own predecessor."""
    ids = text_of(200).ids
    passages = Passages(GENERATION, ids, np.array([0, 200]), 64, 64)
    answers = answer(Bigram(), passages, quiet)
    expected = [-exact_log_probabilities(Bigram(), ids)[at - 1, ids[at]] for at in range(200) if at % 64]
    np.testing.assert_allclose(answers.nll, expected, rtol=1e-5)
    figures = compare(Bigram(0.5), Reference(passages, NO_PROBE, answers))[0]
    other = [-exact_log_probabilities(Bigram(0.5), ids)[at - 1, ids[at]] for at in range(200) if at % 64]
    assert figures["ppl"].value == pytest.approx(math.exp(np.mean(other)), rel=1e-5)
    assert figures["ppl_ratio"].value == pytest.approx(math.exp(np.mean(np.subtract(other, expected))), rel=1e-5)


def test_perplexity_ratio_and_its_paired_error_are_those_of_the_exact_formulas():
    passages, disturbed = text_of(2000), Bigram(0.3)
    reference = Reference(passages, NO_PROBE, answer(Bigram(), passages, quiet))
    figures = compare(disturbed, reference, quiet)[0]

    ids = passages.ids
    rows = np.arange(len(ids) - 1)
    p, q = (exact_log_probabilities(model, ids[:-1]) for model in (Bigram(), disturbed))
    difference = p[rows, ids[1:]] - q[rows, ids[1:]]
    ratio = math.exp(difference.mean())
    nll = -q[rows, ids[1:]]
    assert figures["ppl"].value == pytest.approx(math.exp(nll.mean()), rel=1e-6)
    assert figures["ppl"].se == pytest.approx(math.exp(nll.mean()) * nll.std(ddof=1) / math.sqrt(len(rows)), rel=1e-4)
    assert figures["ppl_ratio"].value == pytest.approx(ratio, rel=1e-6)
    assert figures["ppl_ratio"].se == pytest.approx(ratio * difference.std(ddof=1) / math.sqrt(len(rows)), rel=1e-4)
    # Two independent errors, as of unpaired texts, would be far larger: that is why it is paired.
    alone = math.sqrt(p[rows, ids[1:]].var() + q[rows, ids[1:]].var()) / math.sqrt(len(rows))
    assert figures["ppl_ratio"].se < alone / 2

    full_kl = (np.exp(p) * (p - q)).sum(-1).mean()
    assert figures["kl"].value <= full_kl
    assert figures["kl"].value == pytest.approx(full_kl, rel=0.1)  # the 256 of 600 tokens hold nearly all the mass
    assert figures["top1"].value == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean())


def test_a_model_equals_itself_through_the_file(tmp_path: Path):
    passages = text_of(300)
    Reference(passages, NO_PROBE, answer(Bigram(), passages, quiet)).save(tmp_path / "reference.npz")
    figures = compare(Bigram(), Reference.load(tmp_path / "reference.npz"), quiet)[0]
    assert figures["ppl_ratio"] == Figure(1.0, 0.0)
    assert figures["kl"].value == pytest.approx(0.0, abs=1e-7)
    assert figures["top1"] == Figure(1.0, 0.0)


def test_kl_counts_mass_that_moves_to_tokens_outside_the_top():
    """Half of the probability moved to the least likely tokens must cost at least log 2 per token."""
    passages, thief = text_of(200), Bigram()
    order = np.argsort(thief.table, axis=-1)
    rows = np.arange(VOCABULARY)[:, None]
    thief.table[rows, order[:, :100]] = thief.table.max() + 5
    reference = Reference(passages, NO_PROBE, answer(Bigram(), passages, quiet))
    assert compare(thief, reference, quiet)[0]["kl"].value > math.log(2)


class Broken(Bigram):
    """Its cache forgets what came before the last prefill's half."""

    def prefill(self, ids: Ids) -> Floats:
        return self.logits(ids)[-1]

    def step(self, token: int) -> Floats:
        return self.logits(np.array([0]))[0]


class Cached(Broken):
    def step(self, token: int) -> Floats:
        return self.logits(np.array([token]))[0]


def test_the_probe_finds_a_cache_that_answers_differently_than_the_whole_forward():
    ids = text_of(64).ids[:34].reshape(2, 17)
    mask = np.ones_like(ids)
    mask[1, 9:] = 0
    probe = Probe(ids, mask, Bigram().table[ids])
    error, cache = compare_probe(Cached(), probe, GENERATION).values()
    assert error == Figure(0.0)
    assert cache.value == pytest.approx(0, abs=1e-6)
    assert compare_probe(Broken(), probe, GENERATION)["cache_kl"].value > 1
    disturbed = np.abs(Bigram(0.1).table[ids] - Bigram().table[ids])[mask == 1].max()
    assert compare_probe(Bigram(0.1), probe, GENERATION) == {"logit_error": Figure(pytest.approx(disturbed))}


class Looking(Bigram):
    """Its last token sees what follows it, as in ConvBERT: padding too."""

    def batch(self, ids: Ids, mask: Ids) -> Floats:
        return self.table[ids] + np.roll(self.table[ids], -1, axis=1)

    def logits(self, ids: Ids) -> Floats:
        following: Floats = np.concatenate([self.table[ids[1:]], np.zeros((1, VOCABULARY), np.float32)])
        return self.table[ids] + following


def test_a_model_that_answers_otherwise_beside_padding_is_compared_as_it_was_asked():
    ids = text_of(64).ids[:34].reshape(2, 17)
    mask = np.ones_like(ids)
    mask[1, 9:] = 0
    together = Looking().batch(ids, mask)
    alone = _alone(Looking(), ids, mask, together)
    assert compare_probe(Looking(), Probe(ids, mask, together), FEATURES)["logit_error"].value > 1  # it was an alarm
    assert compare_probe(Looking(), Probe(ids, mask, together, alone), FEATURES) == {"logit_error": Figure(0.0)}
    noisy = compare_probe(Looking(0.1), Probe(ids, mask, together, alone), FEATURES)["logit_error"]
    assert noisy.value > 0.1
    assert _alone(Bigram(), ids, mask, Bigram().table[ids]) is None


def test_encoders_are_compared_by_the_cosine_of_their_passages():
    ids = np.arange(300) % VOCABULARY
    passages = Passages(FEATURES, ids, np.array([0, 100, 200, 300]), 100, 50)
    reference = Reference(passages, NO_PROBE, answer(Bigram(), passages, quiet))
    same = Figure(pytest.approx(1.0, abs=1e-6), pytest.approx(0, abs=1e-6))
    assert compare(Bigram(), reference, quiet)[0] == {"cosine": same}
    expected = []
    for passage in passages:
        a, b = Bigram().table[passage].mean(0), Bigram(1.0).table[passage].mean(0)
        expected.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    figures = compare(Bigram(1.0), reference, quiet)[0]
    assert figures["cosine"].value == pytest.approx(np.mean(expected), abs=1e-5)
    assert figures["cosine"].se == pytest.approx(np.std(expected, ddof=1) / math.sqrt(3), rel=1e-3)


class Classifier(Bigram):
    def logits(self, ids: Ids) -> Floats:
        return super().logits(ids).mean(axis=0, keepdims=True)[:, :3]


def test_classifiers_are_compared_by_their_probabilities_and_their_choice():
    passages = Passages(CLASSIFICATION, np.arange(200), np.array([0, 100, 200]), 100, 50, SINGLE_LABEL)
    reference = Reference(passages, NO_PROBE, answer(Classifier(), passages, quiet))
    figures = compare(Classifier(5.0), reference, quiet)[0]
    assert set(figures) == {"kl", "top1"}
    assert figures["kl"].value > 0
    assert all(figure.se is not None for figure in figures.values())


def row(**quality: Figure) -> Result:
    return Result("onnx", "int8-weight", quality=quality)


@pytest.mark.parametrize(
    ("value", "error", "passed", "said"),
    [
        (1.00, 0.004, True, ""),
        (1.013, 0.003, True, ""),
        (1.015, 0.004, False, "about 2560 tokens could decide it"),
        (1.024, 0.004, False, "more tokens could decide it"),
        (1.05, 0.004, False, "more tokens would not change it"),
        (math.nan, 0.0, False, "the value is nan"),
        (math.inf, math.nan, False, "the value is inf"),
    ],
)
def test_a_gate_passes_only_by_two_standard_errors(value, error, passed, said):
    [gate] = judge(Gates(max_ppl_ratio=1.02), row(ppl_ratio=Figure(value, error)), frozenset(), 1000)
    assert gate.passed is passed
    assert said in gate.detail


def test_a_gate_counts_passages_where_there_is_no_perplexity():
    [gate] = judge(Gates(min_cosine=0.98), row(cosine=Figure(0.985, 0.004)), frozenset(), 4, "passage")
    assert "passages could decide it" in gate.detail
    assert "tokens" not in gate.detail


def test_a_lower_limit_is_judged_from_the_other_side():
    limits = Gates(min_top1=0.9)
    assert judge(limits, row(top1=Figure(0.95, 0.01)), frozenset(), 100)[0].passed
    assert not judge(limits, row(top1=Figure(0.91, 0.01)), frozenset(), 100)[0].passed
    assert "would not" in judge(limits, row(top1=Figure(0.5, 0.01)), frozenset(), 100)[0].detail


def test_a_gate_that_was_asked_for_and_not_measured_fails():
    assert judge(Gates(max_kl=1.0), row(), frozenset(), 100) == []
    [gate] = judge(Gates(max_kl=1.0), row(), frozenset({"max_kl"}), 100)
    assert not gate.passed
    assert gate.value is None


def test_a_gate_finds_its_figure_by_its_name_in_any_group():
    """A size has no error; what its figure says in words tells why a count of errors failed."""
    shipped = Result("gguf", "q8_0", artifact={"size_ratio": 0.3})
    assert judge(Gates(max_size_ratio=0.3), shipped, frozenset(), 100)[0].passed
    [gate] = judge(Gates(max_size_ratio=0.29), shipped, frozenset(), 100)
    assert (gate.passed, gate.value, gate.detail) == (False, 0.3, "beyond the limit")
    differs = row(tokenizer_errors=Figure(2, detail="' ', token 1"))
    [gate] = judge(Gates(max_tokenizer_errors=0), differs, frozenset(), 100)
    assert (gate.passed, gate.value, gate.detail) == (False, 2, "' ', token 1")
    assert judge(Gates(max_tokenizer_errors=2), differs, frozenset(), 100)[0].detail == ""


@settings(max_examples=30)
@given(st.floats(0.5, 2), st.floats(0, 0.2), st.floats(0.5, 2))
def test_the_verdict_is_monotone_in_the_limit(value, error, limit):
    first, second = (
        judge(Gates(max_ppl_ratio=at), row(ppl_ratio=Figure(value, error)), frozenset(), 100)[0].passed
        for at in (limit, limit + 0.1)
    )
    assert second or not first
