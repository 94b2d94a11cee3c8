"""Samples: greedy continuations, changed labels and order, and how a page shows texts that mean harm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from report_schema import complaints
from reports import HOSTILE, generation
from test_report_schema import whole

from exporter.errors import JobError
from exporter.job import Job
from exporter.measure.samples import changed_labels, changed_neighbours, changed_order, continuations, greedy
from exporter.pipeline.sampling import check_samples, first_sentences
from exporter.report.render import render_html, render_markdown
from exporter.report.result import Result
from exporter.types import CLASSIFICATION, MULTI_LABEL, SINGLE_LABEL

pytestmark = pytest.mark.quick


class Counting:
    """A runner whose most likely next token is the last one plus `step`, of ten."""

    engine = "counts"

    def __init__(self, step: int = 1) -> None:
        self._step = step

    def __enter__(self) -> Counting:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def logits(self, ids: np.ndarray) -> np.ndarray:
        return np.eye(10, dtype=np.float32)[(ids + self._step) % 10]


class Cached(Counting):
    def prefill(self, ids: np.ndarray) -> np.ndarray:
        return self.logits(ids)[-1]

    def step(self, token: int) -> np.ndarray:
        return self.logits(np.array([token]))[0]


class Bounded(Counting):
    max_length = 5


def letters(ids: Any) -> str:
    return "".join("abcdefghij"[number] for number in ids)


@pytest.mark.parametrize("runner", [Counting(), Cached()])
def test_greedy_is_the_most_likely_token_until_the_end(runner):
    assert greedy(runner, np.array([3, 4]), [], 4) == [5, 6, 7, 8]
    assert greedy(runner, np.array([3, 4]), [7], 4) == [5, 6, 7]


def told(text: str = "de") -> dict[str, Any]:
    prompt = {"text": text, "ids": [3, 4], "count": 4, "new": [5, 6, 7, 8], "answer": "fghi"}
    return {"prompts": [prompt], "stop": []}


def test_the_first_difference_is_told():
    same = continuations(Cached(), told(), letters)
    assert (same["changed"], same["of"], same["shown"][0]["differs_at"]) == (0, 1, None)
    other = continuations(Counting(2), told(), letters)
    assert other["shown"][0] == {
        "input": ["de"], "reference": "fghi", "answer": "giac", "differs_at": 0, "label": None,
    }  # fmt: skip


def test_an_engine_that_takes_fewer_tokens_differs_in_none_of_them():
    samples = continuations(Bounded(), told(), letters)
    assert (samples["changed"], samples["shown"][0]["answer"], samples["shown"][0]["reference"]) == (0, "fgh", "fgh")


def test_texts_whose_label_changed_the_surest_first():
    expected = np.array([[3, 0, 0], [0, 5, 0], [0, 0, 3], [9, 0, 0]], np.float32)
    got = np.array([[0, 1, 0], [0, 0, 5], [0, 0, 3], [9, 0, 0]], np.float32)
    right = np.eye(3, dtype=bool)[[0, 1, 2, 0]]
    names = ["anger", "joy", "fear"]
    samples = changed_labels(SINGLE_LABEL, expected, got, names, "text {}".format, right)
    assert (samples["changed"], samples["of"]) == (2, 4)
    assert [one["input"] for one in samples["shown"]] == [["text 1"], ["text 0"]]
    assert samples["shown"][0] | {"differs_at": 0} == {
        "input": ["text 1"], "reference": "joy (99%)", "answer": "fear (99%)", "differs_at": 0, "label": "joy",
    }  # fmt: skip
    several = changed_labels(MULTI_LABEL, expected - 1, got - 1, names, "text {}".format)
    assert [one["answer"] for one in several["shown"]] == ["fear", "none"]


def test_pairs_whose_order_changed():
    order = changed_order(np.array([1.0, 2.0, 9.0]), np.array([1.0, 2.0, 0.0]), "text {}".format)
    assert (order["kind"], order["changed"], order["of"]) == ("order", 2, 3)
    assert order["shown"][0]["input"] == ["text 2", "text 0"]
    assert (order["shown"][0]["reference"], order["shown"][0]["answer"]) == ("9.0000 > 1.0000", "0.0000 < 1.0000")
    assert changed_order(np.array([1.0, 2.0]), np.array([1.0, 2.0]) + 1e-9, str)["changed"] == 0


def test_embeddings_are_ordered_by_their_cosines():
    expected = np.array([[1, 0], [1, 0.1], [0, 1], [1, 0.9]], np.float32)
    got = expected.copy()
    got[1] = [0, 1]
    paired = changed_neighbours(expected, got, str, paired=True)
    assert (paired["changed"], paired["of"]) == (1, 1)
    assert paired["shown"][0]["input"] == ["0 ↔ 1", "2 ↔ 3"]
    assert changed_neighbours(expected, got, str, paired=False)["of"] == 15
    assert changed_neighbours(expected, expected, str, paired=False)["changed"] == 0


def test_prompts_are_sentences_of_different_places():
    text = " ".join(f"This is sentence number {number} of the text." for number in range(30))
    assert [one.split()[4] for one in first_sentences(text)] == ["0", "10", "20"]
    assert first_sentences("short") == ["short"]
    assert (
        len(
            first_sentences(
                "今日はとてもよい天気でしたので、みんなで公園へ行って遊びました。明日は雨が降るでしょう、と人は言う。"
            )
        )
        >= 1
    )


def test_a_prompt_for_a_model_that_continues_nothing_is_refused(tmp_path):
    with pytest.raises(JobError, match=r"--sample is a prompt to continue, and this model is for text-classification"):
        check_samples(Job(model="m", output=tmp_path, sample="Hello"), CLASSIFICATION)
    assert Job(model="m", output=tmp_path, sample="Hello").sample == ("Hello",)


def test_a_page_shows_them_side_by_side_and_obeys_none():
    report = whole(generation())
    first, second = f"same {HOSTILE}", "samx <b>{{7*7}}</b>"
    for index, answer in ((0, first), (1, second), (2, first)):
        shown = {"input": [HOSTILE], "reference": first, "answer": answer, "differs_at": None, "label": None}
        samples = {"kind": "continuations", "changed": int(answer != first), "of": 1, "shown": [shown]}
        row = Result("torch", "fp32", samples=samples).to_json()
        assert list(complaints(report | {"results": [row]})) == []
        report["results"][index]["samples"] = samples
    page = render_html(report)
    begin = page.index('id="samples"')
    section = page[begin : page.index("</section>", begin)]
    assert "sam<mark>x</mark> &lt;b&gt;{{7*7}}&lt;/b&gt;" in section
    assert section.count("<mark>") == 1
    assert "<script" not in section
    assert "49" not in section
    assert [section.count(f"<dt>{name}</dt>") for name in ("torch:fp32", "onnx:fp32", "onnx:int8-weight")] == [1, 1, 1]
    assert "onnx:fp32: 1 of 1 continuations" in render_markdown(report).replace("\\", "")
