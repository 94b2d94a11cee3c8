"""What is compared of a classifier: by its problem type, against what can be computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import transformers
from test_encoders import tokenizer as tokenizer_of

from exporter.checkpoint.problem import problem_of, problem_type
from exporter.errors import JobError
from exporter.measure.classification import compare_answers
from exporter.measure.quality import Answers, Passages, Reference
from exporter.tasks.known import TASKS
from exporter.types import CLASSIFICATION, FEATURES, MULTI_LABEL, REGRESSION, SINGLE_LABEL, Probe

pytestmark = pytest.mark.quick

RNG = np.random.default_rng(0)


def random(texts: int = 200, outputs: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(texts, outputs)).astype(np.float32) * 2


@pytest.mark.parametrize(
    ("settings", "meant"),
    [
        ({"num_labels": 1}, REGRESSION),
        ({"num_labels": 2}, SINGLE_LABEL),
        ({"num_labels": 5}, SINGLE_LABEL),
        ({"num_labels": 5, "problem_type": REGRESSION}, REGRESSION),
        ({"num_labels": 5, "problem_type": MULTI_LABEL}, MULTI_LABEL),
        ({"num_labels": 1, "problem_type": MULTI_LABEL}, MULTI_LABEL),
    ],
)
def test_the_problem_type_is_the_one_that_transformers_takes(tmp_path: Path, settings, meant):
    transformers.BertConfig(**settings).save_pretrained(tmp_path)
    assert problem_of(tmp_path, CLASSIFICATION) == meant
    assert problem_of(tmp_path, FEATURES) == ""


def test_a_number_of_labels_without_names_counts_too():
    assert problem_type({"num_labels": 1}) == REGRESSION
    assert problem_type({}) == SINGLE_LABEL


def test_one_label_is_compared_by_the_softmax_and_the_choice():
    a, b = random(), random(seed=1)
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (a.astype(float), b.astype(float)))
    figures = compare_answers(SINGLE_LABEL, a, b)
    kl = (p * np.log(p / q)).sum(-1)
    assert figures["kl"].value == pytest.approx(kl.mean(), rel=1e-4)
    assert figures["kl"].se == pytest.approx(kl.std(ddof=1) / np.sqrt(200), rel=1e-4)
    assert figures["top1"].value == (a.argmax(-1) == b.argmax(-1)).mean()
    assert figures["top1"].detail is None


def test_several_labels_are_a_yes_or_no_each():
    a, b = random(), random(seed=1)
    p, q = (1 / (1 + np.exp(-x.astype(float))) for x in (a, b))
    kl = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean(-1)
    figures = compare_answers(MULTI_LABEL, a, b)
    assert figures["kl"].value == pytest.approx(kl.mean(), rel=1e-5)
    assert figures["top1"].value == ((p > 0.5) == (q > 0.5)).all(-1).mean()
    # A shift of all logits changes no softmax, and is another answer here.
    assert compare_answers(SINGLE_LABEL, a, a + 3)["kl"].value == pytest.approx(0, abs=1e-6)
    assert compare_answers(MULTI_LABEL, a, a + 3)["kl"].value > 0.3


def test_sigmoids_that_are_sure_do_not_overflow():
    sure = np.array([[800.0, -800.0], [-800.0, 800.0]], np.float32)
    figures = compare_answers(MULTI_LABEL, sure, sure)
    assert (figures["kl"].value, figures["top1"].value) == (0.0, 1.0)
    assert compare_answers(MULTI_LABEL, sure, -sure)["kl"].value == pytest.approx(800)


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_number_is_compared_by_its_error_over_the_spread(outputs):
    a = random(outputs=outputs) * [1, 100, 0.01][:outputs] + 50
    b = a + a.std(0) * 0.1 * np.where(RNG.random(a.shape) < 0.5, 1, -1)
    figures = compare_answers(REGRESSION, a.astype(np.float32), b.astype(np.float32))
    assert figures["regression_error"].value == pytest.approx(0.1, rel=1e-2)
    each = [np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)]
    assert figures["pearson"].value == pytest.approx(np.mean(each), abs=1e-4)
    same = compare_answers(REGRESSION, a.astype(np.float32), a.astype(np.float32))
    assert same["regression_error"].value == 0
    assert same["pearson"].value == same["spearman"].value == pytest.approx(1)


def test_the_order_is_compared_apart_from_the_values():
    a = np.arange(100, dtype=np.float32)[:, None]
    figures = compare_answers(REGRESSION, a, a**3)
    assert figures["spearman"].value == pytest.approx(1)
    assert figures["pearson"].value < 0.95
    assert compare_answers(REGRESSION, a, -a)["spearman"].value == pytest.approx(-1)
    # Equal values share a rank: half of the order is gone, and not half of it wrong.
    halves = np.repeat(np.array([0.0, 1.0], np.float32), 50)[:, None]
    assert compare_answers(REGRESSION, a, halves)["spearman"].value == pytest.approx(np.sqrt(0.75), abs=1e-2)


def test_an_artifact_that_answers_all_alike_orders_nothing():
    figures = compare_answers(REGRESSION, random(outputs=1), np.zeros((200, 1), np.float32))
    assert figures["spearman"].value == figures["pearson"].value == 0
    assert figures["regression_error"].value > 0.5


def test_a_reference_that_answers_all_alike_says_so():
    alike = np.tile(np.array([[3.0, -1.0, 0.5]], np.float32), (50, 1))
    same = compare_answers(SINGLE_LABEL, alike, alike)
    assert "answers all texts alike" in same["top1"].detail
    assert "alike" in compare_answers(MULTI_LABEL, alike, alike)["top1"].detail
    constant = compare_answers(REGRESSION, alike, alike * 1.5)
    assert constant["regression_error"].value == pytest.approx(0.5)  # of its own size: there is no spread
    assert constant["spearman"].value is None
    assert "alike" in constant["spearman"].detail


def test_the_problem_type_travels_with_the_reference(tmp_path: Path):
    none = np.zeros((0, 0), np.float32)
    passages = Passages(CLASSIFICATION, np.arange(4), np.array([0, 2, 4]), 8, 4, REGRESSION)
    probe = Probe(np.zeros((1, 1), np.int64), np.ones((1, 1), np.int64), np.zeros((1, 1), np.float32))
    path = tmp_path / "reference.npz"
    Reference(passages, probe, Answers(np.zeros(0), none.astype(np.int32), none, none, random(2, 1))).save(path)
    assert Reference.load(path).passages.problem_type == REGRESSION
    with np.load(path) as data:
        old = {name: data[name] for name in data.files if name != "problem_type"}
    np.savez(path, **old)
    with pytest.raises(JobError, match="run the job again"):
        Reference.load(path)


def test_one_logit_is_never_compared_by_its_softmax():
    figures = compare_answers(SINGLE_LABEL, random(outputs=1), random(outputs=1, seed=1))
    assert figures["regression_error"].value > 0.5


def words(count: int) -> str:
    return "\n".join(f"word{i % 150} word{i // 3 % 150} word{i * 7 % 150}" for i in range(count))


def test_a_classifier_reads_whole_lines_with_their_special_tokens(tmp_path: Path):
    tokenizer_of(tmp_path, 500)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "word1 word2\n\n  word3 word4 word5  \n=====\nword1 word2\n" + words(60)
    passages = TASKS[CLASSIFICATION].read(tokenizer, text, 100, 5, 2)
    pieces = [piece.tolist() for piece in passages]
    lines = [line.strip() for line in dict.fromkeys(text.split("\n")) if "word" in line]
    expected = [tokenizer(line, truncation=True, max_length=5)["input_ids"] for line in lines]
    assert pieces == expected[: len(pieces)]
    assert pieces[0] == tokenizer("word1 word2")["input_ids"]  # a line that comes twice counts once
    assert max(map(len, pieces)) == 5  # the window cuts
    assert 100 <= len(passages.ids) < 105  # --eval-tokens, to the end of a text


def test_a_text_of_one_line_is_refused_for_a_classifier(tmp_path: Path):
    tokenizer_of(tmp_path, 500)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = words(300).replace("\n", " ")
    with pytest.raises(JobError, match=r"has 1 different lines .* give --eval-text FILE"):
        TASKS[CLASSIFICATION].read(tokenizer, text, 100, 64, 32)
    assert len(TASKS[FEATURES].read(tokenizer, text, 256, 64, 32).offsets) == 5
