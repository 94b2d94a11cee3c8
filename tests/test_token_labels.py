"""Labelled sentences and questions: their figures by hand and by seqeval, and through the whole program."""

from __future__ import annotations

import json

import numpy as np
import pytest
import transformers
from token_models import LABELS, checkpoint, text

from exporter import Job, run
from exporter.measure.labels import ANSWERS, TAGS, Labels
from exporter.measure.scored import compare_labels, doubt, score
from exporter.measure.spans import normal, shared
from exporter.pipeline.labelled import tokenize_examples

NAMES = tuple(LABELS["id2label"].values())
TRUE = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "O", "B-LOC", "I-LOC"], ["B-PER", "O", "O", "O"]]
SAID = [["B-PER", "I-PER", "O", "O"], ["O", "O", "B-LOC", "O"], ["B-PER", "O", "B-LOC", "O"]]


def tags(sentences):
    return np.array([NAMES.index(tag) for tags in sentences for tag in tags])


def logits(classes, count):
    return np.eye(count, dtype=np.float32)[classes] * 8


def test_entities_are_counted_whole():
    from seqeval.metrics import f1_score, precision_score, recall_score

    labels = Labels(TAGS, tags(TRUE).astype(float), NAMES, (0, 4, 8, 12))
    found = compare_labels(labels, logits(tags(TRUE), 5), logits(tags(SAID), 5))
    assert found["f1"].value == pytest.approx(f1_score(TRUE, SAID)) == pytest.approx(0.5)  # 2 of 4 found, of 4 there
    assert found["precision"].value == pytest.approx(precision_score(TRUE, SAID))
    assert found["recall"].value == pytest.approx(recall_score(TRUE, SAID))
    assert found["accuracy"].value == pytest.approx(9 / 12)
    assert found["f1_drop"].value == pytest.approx(0.5)
    assert found["accuracy_drop"].value == pytest.approx(3 / 12)
    own = score(labels, logits(tags(TRUE), 5))
    assert (own["f1"].value, own["f1_drop"].value) == (1.0, 0.0)
    assert doubt(labels, own) is None
    assert "are the labels this model's?" in doubt(labels, score(labels, logits(tags(TRUE) * 0, 5)))


def test_answers_are_compared_as_squad_does():
    assert normal(" The  Cat, sat. ") == "cat sat"
    assert shared("the cat sat", "a cat") == pytest.approx(2 / 3)
    assert (shared("", ""), shared("", "cat")) == (1.0, 0.0)
    context = "Ada lived in London. She wrote."
    places = np.array([(0, 0), (0, 3), (4, 9), (10, 12), (13, 19), (19, 20), (21, 24), (25, 30), (30, 31)], float)
    texts = (json.dumps([context, ["London", "in London"]]), json.dumps([context, [""]]))
    labels = Labels(ANSWERS, np.concatenate([places, places]), (), (0, 9, 18), texts)

    def spans(*asked):
        made = np.full((18, 2), -9, np.float32)
        for number, (begin, end) in enumerate(asked):
            made[9 * number + begin, 0] = made[9 * number + end, 1] = 9
        return made

    right, worse = spans((3, 4), (0, 0)), spans((2, 4), (6, 6))  # "in London" and none; "lived in London" and "She"
    own = score(labels, right)
    assert (own["accuracy"].value, own["f1"].value) == (1.0, 1.0)
    found = compare_labels(labels, right, worse)
    assert found["accuracy"].value == 0.0
    assert found["f1"].value == pytest.approx((2 * 2 / 5 + 0) / 2)
    assert found["f1_drop"].value == pytest.approx(0.6)
    assert found["accuracy_drop"].value == 1.0


def sentences(count=40):
    for number, line in enumerate(text(count).split("\n")):
        words = line.replace(".", "").replace("?", "").split()[:9]
        yield {"tokens": words, "ner_tags": [(number + at) % 5 for at in range(len(words))]}


def questions(count=24):
    for line in text(count).split("\n"):
        question, rest = line.split("? ")
        yield {"question": f"{question}?", "context": rest, "answers": {"text": [rest.split()[2]], "answer_start": [0]}}


def written(folder, rows):
    file = folder / "examples.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.mark.parametrize(("task", "rows"), [("token-classification", sentences), ("question-answering", questions)])
def test_through_the_program(task, rows, tmp_path):
    folder = checkpoint(tmp_path / "model", "Bert", task)
    how = {"eval_data": written(tmp_path, rows()), "speed": False, "threads": 1, "window": 64}
    wanted = Job(
        model=str(folder), target=("onnx:fp32", "onnx:int4-weight"), output=tmp_path / "out", policy="off", **how
    )
    report = run(wanted)
    reference, same, coarse = report["results"]
    for name in ("accuracy", "f1"):
        assert reference["quality"][name]["value"] == same["quality"][name]["value"]
        assert same["quality"][f"{name}_drop"]["value"] == 0.0
        assert same["quality"][f"{name}_drop"]["se"] > 0
    assert coarse["quality"]["kl"]["value"] > same["quality"]["kl"]["value"]
    assert coarse["quality"]["f1"]["value"] is not None
    strict = run(
        wanted.model_copy(update={"max_f1_drop": 0.0, "output": tmp_path / "strict", "target": ("onnx:fp32",)})
    )
    assert strict["exit_status"] == 3  # within two standard errors of nothing lost is not nothing lost
    assert [gate["name"] for gate in strict["results"][1]["gates"] if not gate["passed"]] == ["max_f1_drop"]


def test_words_are_compared_at_their_first_token(tmp_path):
    folder = checkpoint(tmp_path / "model", "Bert", "token-classification")
    words = transformers.AutoTokenizer.from_pretrained(folder)
    data = {"kind": TAGS, "values": [[["word1.", "word2"], [1, 0]], [["word3"], [2]]] * 20, "names": NAMES}
    passages, labels, cut = tokenize_examples(words, data, "token-classification", 64)
    assert cut == 0
    assert passages.compared[:3].tolist() == [1, 3, 6]  # [CLS] word1 . word2 [SEP] | [CLS] word3 [SEP]
    assert labels.values[:3].tolist() == [1, 0, 2]
    assert labels.bounds[:3] == (0, 2, 3)


@pytest.mark.parametrize(("row", "said"), [
    ({"tokens": ["word1"], "ner_tags": ["B-ORG"]}, "'B-ORG' is no label of this model; it has: O, B-PER"),
    ({"tokens": ["word1", "word2"], "ner_tags": [0]}, "must be lists of the same length"),
    ({"words": ["word1"]}, "which column of examples.jsonl is the label?"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(refused, row, said, tmp_path):
    folder = checkpoint(tmp_path / "model", "Bert", "token-classification")
    assert said in refused("-m", folder, "-t", "onnx:fp32", "--eval-data", written(tmp_path, [row] * 9), "--no-speed")
