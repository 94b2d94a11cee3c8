"""Labelled data: what is read of a file, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exporter.errors import JobError
from exporter.job import Job
from exporter.measure.labels import check_packages
from exporter.pipeline.labelled import labelled_data
from exporter.report.labelled import data_line
from exporter.types import CLASSIFICATION, FEATURES, GENERATION, MULTI_LABEL

pytestmark = pytest.mark.quick

pytest.importorskip("sklearn", reason="scikit-learn of the extra [data] is not installed")

NAMES = ("anger", "joy", "fear")
EMOTIONS = {"id2label": dict(enumerate(NAMES))}
SEVERAL = EMOTIONS | {"problem_type": MULTI_LABEL}
NUMBER = {"id2label": {0: "LABEL_0"}}


def read(tmp_path: Path, rows: list[dict[str, Any]], config: dict[str, Any], task: str = CLASSIFICATION, **asked: Any):
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return labelled_data(Job(model="m", output=tmp_path, eval_data=file, **asked), task, config, None)


def rows(labels: list[Any], **more: str) -> list[dict[str, Any]]:
    return [{"text": f"text {number}", "label": label, **more} for number, label in enumerate(labels)]


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
