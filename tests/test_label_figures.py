"""The figures of labelled data and their errors, beside scikit-learn's and scipy's own."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.measure.gates import judge
from exporter.measure.labels import PAIRS, Labels
from exporter.measure.scored import compare_labels, doubt, score
from exporter.report.labelled import labelled_lines
from exporter.report.result import Result
from exporter.types import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Gates

pytestmark = pytest.mark.quick

pytest.importorskip("sklearn", reason="scikit-learn of the extra [data] is not installed")

RNG = np.random.default_rng(0)
NAMES = ("anger", "joy", "fear")


def logits(decided: np.ndarray, classes: int) -> np.ndarray:
    return (np.arange(classes) == decided[:, None]).astype(np.float32) * 3 + RNG.normal(0, 0.1, (len(decided), classes))


def some(right: float, truth: np.ndarray, classes: int) -> np.ndarray:
    """Decisions of which about so many are right."""
    return np.where(RNG.random(len(truth)) < right, truth, RNG.integers(0, classes, len(truth)))


def test_figures_are_scikit_learns():
    from sklearn.metrics import f1_score, matthews_corrcoef, precision_score, recall_score

    truth = RNG.integers(0, 3, 400)
    a, b = some(0.9, truth, 4), some(0.7, truth, 4)  # a fourth class, which no example has
    figures = compare_labels(Labels(SINGLE_LABEL, truth.astype(float), (*NAMES, "none")), logits(a, 4), logits(b, 4))
    macro = {"labels": [0, 1, 2], "average": "macro"}
    assert figures["accuracy"].value == pytest.approx((truth == b).mean())
    assert figures["f1"].value == pytest.approx(f1_score(truth, b, **macro))
    assert figures["precision"].value == pytest.approx(precision_score(truth, b, **macro))
    assert figures["recall"].value == pytest.approx(recall_score(truth, b, **macro))
    assert figures["matthews"].value == pytest.approx(matthews_corrcoef(truth, b))
    assert figures["f1_drop"].value == pytest.approx(f1_score(truth, a, **macro) - f1_score(truth, b, **macro))
    assert figures["matthews_drop"].value == pytest.approx(matthews_corrcoef(truth, a) - matthews_corrcoef(truth, b))
    assert figures["accuracy_drop"].value == pytest.approx((truth == a).mean() - (truth == b).mean())


def test_several_labels_at_once_are_scikit_learns():
    from sklearn.metrics import accuracy_score, f1_score

    truth = RNG.random((300, 3)) < 0.4
    a, b = (np.where(RNG.random(truth.shape) < share, truth, ~truth) for share in (0.95, 0.8))
    figures = compare_labels(Labels(MULTI_LABEL, truth.astype(float), NAMES), a * 2.0 - 1, b * 2.0 - 1)
    assert figures["accuracy"].value == pytest.approx(accuracy_score(truth, b))
    assert figures["f1"].value == pytest.approx(f1_score(truth, b, average="macro"))
    assert figures["f1_drop"].value == pytest.approx(
        f1_score(truth, a, average="macro") - f1_score(truth, b, average="macro")
    )
    assert 0.5 < figures["matthews"].value < 0.7


def test_errors_are_those_of_samples_drawn_anew():
    truths = [RNG.integers(0, 3, 300) for _ in range(60)]
    drawn = []
    for truth in truths:
        a = some(0.9, truth, 3)
        b = np.where(RNG.random(300) < 0.9, a, RNG.integers(0, 3, 300))  # like a where it is not disturbed
        drawn.append(compare_labels(Labels(SINGLE_LABEL, truth.astype(float), NAMES), logits(a, 3), logits(b, 3)))
    for name in ("accuracy", "accuracy_drop", "f1", "f1_drop", "matthews_drop"):
        spread = np.std([figures[name].value for figures in drawn], ddof=1)
        told = np.mean([figures[name].se for figures in drawn])
        assert told == pytest.approx(spread, rel=0.35), name


def test_mcnemar_counts_what_only_one_gets_right():
    truth = np.zeros(100, int)
    a, b = truth.copy(), truth.copy()
    a[:2], b[10:22] = 1, 1
    truth[50:] = a[50:] = b[50:] = 1
    figures = compare_labels(Labels(SINGLE_LABEL, truth.astype(float), NAMES[:2]), logits(a, 2), logits(b, 2))
    assert figures["mcnemar_p"].value == pytest.approx(0.0129, abs=1e-4)  # binom.test(2, 14)
    assert figures["mcnemar_p"].detail.startswith("12 examples that the reference alone gets right, 2 that")
    assert figures["accuracy_drop"].value == pytest.approx(0.10)
    assert figures["recall_drop"].detail.startswith("anger 0.960 → 0.760 (−0.200 ±")
    assert "joy" not in figures["recall_drop"].detail


def test_a_few_examples_that_agree_prove_no_equality():
    for count, passes in ((10, False), (2000, True)):
        truth = np.arange(count) % 2
        labels = Labels(SINGLE_LABEL, truth.astype(float), NAMES[:2])
        row = Result("onnx", "fp32", quality=compare_labels(labels, logits(truth, 2), logits(truth, 2)))
        gates = judge(Gates(max_accuracy_drop=0.01, max_f1_drop=0.01), row, frozenset(), count)
        assert [gate.passed for gate in gates] == [passes, passes]


def test_numbers_are_scipys():
    from scipy.stats import pearsonr, spearmanr

    truth = RNG.normal(0, 1, 200)
    a, b = truth + RNG.normal(0, 0.2, 200), truth + RNG.normal(0, 1.0, 200)
    figures = compare_labels(Labels(REGRESSION, truth[:, None]), a[:, None], b[:, None])
    assert figures["label_pearson"].value == pytest.approx(pearsonr(truth, b).statistic)
    assert figures["label_spearman"].value == pytest.approx(spearmanr(truth, b).statistic)
    assert figures["label_mae"].value == pytest.approx(np.abs(truth - b).mean())
    assert figures["mae_rise"].value == pytest.approx(np.abs(truth - b).mean() - np.abs(truth - a).mean())
    assert figures["spearman_drop"].value > 5 * figures["spearman_drop"].se > 0
    gates = judge(Gates(max_spearman_drop=0.05), Result("onnx", "fp32", quality=figures), frozenset(), 200)
    assert [gate.passed for gate in gates] == [False]


def test_pairs_are_ranked_by_their_cosine():
    from scipy.stats import spearmanr

    vectors = RNG.normal(0, 1, (40, 8)).astype(np.float32)
    cosines = [
        float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))
        for a, b in zip(vectors[::2], vectors[1::2], strict=True)
    ]
    truth = np.array(cosines) + RNG.normal(0, 0.1, 20)
    figures = compare_labels(Labels(PAIRS, truth[:, None]), vectors, -vectors[::-1])
    assert score(Labels(PAIRS, truth[:, None]), vectors)["label_spearman"].value == pytest.approx(
        spearmanr(truth, cosines).statistic
    )
    assert figures["spearman_drop"].value == pytest.approx(
        spearmanr(truth, cosines).statistic - spearmanr(truth, cosines[::-1]).statistic
    )
    assert "label_mae" not in figures  # a cosine is on another scale than the labels


def test_labels_of_another_order_are_doubted():
    truth = np.arange(90) % 3
    labels = Labels(SINGLE_LABEL, truth.astype(float), NAMES)
    assert doubt(labels, score(labels, logits(truth, 3))) is None
    assert "are the labels the model's? Its classes are anger, joy, fear" in doubt(
        labels, score(labels, logits((truth + 1) % 3, 3))
    )


def test_a_row_says_which_classes_got_worse():
    truth = np.arange(300) % 3
    worse = np.where((truth == 2) & (np.arange(300) % 2 == 0), 1, truth)
    labels = Labels(SINGLE_LABEL, truth.astype(float), NAMES)
    row = Result("onnx", "fp32", quality=compare_labels(labels, logits(truth, 3), logits(worse, 3))).to_json()
    own, against, mcnemar, classes = labelled_lines(row)
    assert own.startswith("on labelled data: accuracy 0.8333 ± 0.0215, macro F1 0.8")
    assert against.startswith("against the reference: accuracy lower by 0.1667 ± 0.0")
    assert mcnemar.startswith(
        "50 examples that the reference alone gets right, 0 that the artifact alone does; McNemar"
    )
    assert classes.startswith("classes whose recall got worse: fear 1.000 → 0.500 (−0.500 ±")
    assert list(labelled_lines(Result("onnx", "fp32").to_json())) == []
