"""Labelled data: what is read of a file, and figures and errors beside scikit-learn's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.errors import JobError
from exporter.job import Job
from exporter.measure.gates import judge
from exporter.measure.labels import PAIRS, Labels, check_packages, compare_labels, doubt, score
from exporter.pipeline.labelled import labelled_data
from exporter.report.labelled import data_line, labelled_lines
from exporter.report.result import Result
from exporter.types import CLASSIFICATION, FEATURES, GENERATION, MULTI_LABEL, REGRESSION, SINGLE_LABEL, Gates

pytestmark = pytest.mark.quick

pytest.importorskip("sklearn", reason="scikit-learn of the extra [data] is not installed")

RNG = np.random.default_rng(0)
NAMES = ("anger", "joy", "fear")
EMOTIONS = {"id2label": dict(enumerate(NAMES))}
SEVERAL = EMOTIONS | {"problem_type": MULTI_LABEL}
NUMBER = {"id2label": {0: "LABEL_0"}}


def logits(decided: np.ndarray, classes: int) -> np.ndarray:
    return (np.arange(classes) == decided[:, None]).astype(np.float32) * 3 + RNG.normal(0, 0.1, (len(decided), classes))


def some(right: float, truth: np.ndarray, classes: int) -> np.ndarray:
    """Decisions of which about so many are right."""
    return np.where(RNG.random(len(truth)) < right, truth, RNG.integers(0, classes, len(truth)))


def read(tmp_path: Path, rows: list[dict[str, Any]], config: dict[str, Any], task: str = CLASSIFICATION, **asked: Any):
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return labelled_data(Job(model="m", output=tmp_path, eval_data=file, **asked), task, config, None)


def rows(labels: list[Any], **more: str) -> list[dict[str, Any]]:
    return [{"text": f"text {number}", "label": label, **more} for number, label in enumerate(labels)]


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


@pytest.mark.parametrize(
    ("labels", "values", "meant"),
    [
        (["joy", "fear", "anger", "joy"] * 2, (1, 2, 0, 1) * 2, "names"),
        (["Joy", "FEAR", "anger", "joy"] * 2, (1, 2, 0, 1) * 2, "names, without regard to upper and lower case"),
        ([1, 2, 0, 1] * 2, (1, 2, 0, 1) * 2, "numbers of the classes"),
        (["1", "2.0", "0", "1"] * 2, (1, 2, 0, 1) * 2, "numbers of the classes"),
    ],
)
def test_labels_are_names_or_numbers(tmp_path, labels, values, meant):
    data = read(tmp_path, rows(labels), EMOTIONS)
    assert (data.values, data.about["labels"], data.names) == (values, meant, NAMES)


def test_names_that_are_numbers_are_names(tmp_path):
    stars = {"id2label": {number: str(number + 1) for number in range(5)}}
    assert read(tmp_path, rows([1, 5, 3, 2] * 2), stars).values == (0, 4, 2, 1) * 2


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        ([["joy", "fear"], ["anger"], [], ["joy"]] * 2, ((0, 1, 1), (1, 0, 0), (0, 0, 0), (0, 1, 0)) * 2),
        (["joy, fear", "anger", '["fear"]', "joy"] * 2, ((0, 1, 1), (1, 0, 0), (0, 0, 1), (0, 1, 0)) * 2),
        ([[0, 1, 1], [1, 0, 0]] * 4, ((0, 1, 1), (1, 0, 0)) * 4),
        ([[1, 2], [0]] * 4, ((0, 1, 1), (1, 0, 0)) * 4),
    ],
)
def test_an_example_may_have_several_labels(tmp_path, labels, values):
    assert read(tmp_path, rows(labels), SEVERAL).values == values


@pytest.mark.parametrize(
    ("labels", "config", "said"),
    [
        (["joy"] * 8 + ["sad"], EMOTIONS, r"line 9: label is 'sad', which is no label of this model; it has: 0 anger"),
        ([0] * 8 + [3], EMOTIONS, r"line 9: label is 3, which is no label of this model; it has: 0 anger, 1 joy"),
        ([0] * 8 + [-1], EMOTIONS, r"label is \S+, which is no label"),
        ([0] * 8 + [None], EMOTIONS, r"line 9 has no label in label"),
        (["joy"] * 7, EMOTIONS, r"has 7 examples, and at least 8"),
        ([1.0] * 8 + ["high"], NUMBER, r"line 9: label is 'high', and this model answers a number"),
        ([1.0] * 9, NUMBER, r"all of label is 1: what does not vary orders nothing"),
    ],
)
def test_what_fits_no_label_is_refused(tmp_path, labels, config, said):
    with pytest.raises(JobError, match=said):
        read(tmp_path, rows(labels), config)


def test_columns_are_guessed_and_told(tmp_path):
    both = [{"idx": n, "premise": f"a {n}", "hypothesis": f"b {n}", "label": n % 3} for n in range(9)]
    data = read(tmp_path, both, EMOTIONS)
    assert data.about["columns"] == {"text": "premise", "pair": "hypothesis", "label": "label"}
    assert data.about["guessed"] == ["text", "pair", "label"]
    assert data.pairs[2] == "b 2"
    one = read(tmp_path, both, EMOTIONS, text_column="hypothesis", label_column="label")
    assert (one.pairs, one.texts[2], one.about["guessed"]) == (None, "b 2", [])
    assert data_line(data.about | {"cut": 2}) == (
        "9 examples: text from 'premise' (guessed), pair from 'hypothesis' (guessed), label from 'label' (guessed); "
        "labels are numbers of the classes; 2 texts were cut at the window"
    )


@pytest.mark.parametrize(
    ("asked", "task", "config", "said"),
    [
        ({"text_column": "txet"}, CLASSIFICATION, EMOTIONS, r"--text-column: unknown column of data.jsonl 'txet'; did"),
        ({}, FEATURES, {}, r"which column of data.jsonl is the pair\? Give --pair-column; there are: text, label"),
        ({"label_column": "text"}, CLASSIFICATION, EMOTIONS, r"one column of data.jsonl cannot be two things"),
        ({}, GENERATION, {}, r"this model is for text-generation: give --eval-text"),
        ({"eval_text": Path("t")}, CLASSIFICATION, EMOTIONS, r"--eval-data and --eval-text are two texts"),
        ({"max_spearman_drop": 0.1}, CLASSIFICATION, EMOTIONS, r"--max-spearman-drop is not measured of this model"),
        ({"max_f1_drop": 0.1}, CLASSIFICATION, NUMBER, r"--max-f1-drop is not measured of this model \(regression\)"),
    ],
)
def test_what_cannot_be_scored_is_refused(tmp_path, asked, task, config, said):
    with pytest.raises(JobError, match=said):
        read(tmp_path, rows([0] * 9), config, task, **asked)


def test_a_gate_of_labels_needs_labels(tmp_path):
    with pytest.raises(JobError, match=r"--max-accuracy-drop is of labelled data: give it with --eval-data FILE"):
        labelled_data(Job(model="m", output=tmp_path, max_accuracy_drop=0.01), CLASSIFICATION, EMOTIONS, None)
    with pytest.raises(JobError, match=r"--label-column names a column of --eval-data FILE"):
        labelled_data(Job(model="m", output=tmp_path, label_column="y"), CLASSIFICATION, EMOTIONS, None)


def of_file(tmp_path: Path, name: str, text: str | bytes):
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return labelled_data(Job(model="m", output=tmp_path, eval_data=file), CLASSIFICATION, EMOTIONS, None)


def test_csv_and_parquet_say_the_same_as_json(tmp_path):
    texts = [f'a "quoted", text\nof two lines {number}' for number in range(9)]
    labels = [NAMES[number % 3] for number in range(9)]
    expected = read(tmp_path, [{"text": a, "label": b} for a, b in zip(texts, labels, strict=True)], EMOTIONS)
    quoted = ['"' + text.replace('"', '""') + '"' for text in texts]
    csv = of_file(
        tmp_path, "d.csv", "\ufefftext,label\r\n" + "".join(f"{a},{b}\r\n" for a, b in zip(quoted, labels, strict=True))
    )
    assert (csv.texts, csv.values) == (expected.texts, expected.values)
    pa = pytest.importorskip("pyarrow", reason="pyarrow of the extra [data] is not installed")
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": texts, "label": labels}), tmp_path / "d.parquet")
    same = of_file(tmp_path, "d.parquet", (tmp_path / "d.parquet").read_bytes())
    assert (same.texts, same.values) == (expected.texts, expected.values)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("d.tsv", "", r"give a file whose name ends in .jsonl, .csv, .parquet"),
        ("d.jsonl", "", r"has no examples"),
        ("d.jsonl", '{"text": "a"}\n[1]\n', r"line 2 is no object such as"),
        ("d.jsonl", '{"text": "a"\n', r"line 1 is no JSON"),
        ("d.csv", "text,label\na,b,c\n", r"line 2 has other columns than the first"),
        ("d.csv", "text,text,label\na,b,c\n", r"two columns of one name"),
        ("d.csv", b"text,label\n\xe9,joy\n", r"is not UTF-8 .* iconv -f latin1"),
        ("d.jsonl", '{"text": " ", "label": 0}\n' * 9, r"line 1: text is ' ': each example needs a text"),
    ],
)
def test_a_broken_file_is_told_by_its_line(tmp_path, name, text, said):
    with pytest.raises(JobError, match=said):
        of_file(tmp_path, name, text)


def test_no_package_is_missing_here():
    check_packages(Path("d.parquet"))


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
