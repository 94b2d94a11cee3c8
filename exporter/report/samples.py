"""Samples side by side: what a person would try, with the first difference marked. All of it is data: texts of a model.

A row's samples stand in report.json; here they are put beside each other for a page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_WORDS = {
    "continuations": "continuations of up to 48 tokens differ from the reference's",
    "labels": "texts have another label than the reference gives",
    "transcripts": "transcripts differ from the reference's",
    "order": "pairs are in another order than the reference's",
}


def side_by_side(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each sample once, with what every row answers: continuations by their prompt, all else by its row."""
    told = [(row, row["samples"]) for row in report["results"] if row.get("samples")]
    prompts = [(row, samples["shown"]) for row, samples in told if samples["kind"] == "continuations"]
    for number in range(max((len(shown) for _, shown in prompts), default=0)):
        having = [(row, shown[number]) for row, shown in prompts if number < len(shown)]
        answers = [_answer(_name(row), one) for row, one in having]
        yield {"input": having[0][1]["input"], "label": None, "answers": answers}
    for row, samples in told:
        for one in samples["shown"] if samples["kind"] != "continuations" else ():
            reference = _answer(report["evaluation"]["reference"], {**one, "answer": one["reference"]})
            yield {"input": one["input"], "label": one["label"], "answers": [reference, _answer(_name(row), one)]}


def samples_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """A line for each artifact that something was tried of: how much of it differs."""
    for row in report["results"]:
        samples = row.get("samples")
        if samples and _name(row) != report["evaluation"]["reference"]:
            yield f"{_name(row)}: {samples['changed']:,} of {samples['of']:,} {_WORDS[samples['kind']]}"


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['target']}:{row['precision']}"


def _answer(variant: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    """An answer in three parts: as the reference's, the first character that is not, and the rest.

    The place is found anew: characters that no page may hold are gone by now.
    """
    reference, answer = sample["reference"], sample["answer"]
    if answer == reference:
        return {"variant": variant, "same": answer, "odd": "", "rest": ""}
    pairs = enumerate(zip(reference, answer, strict=False))
    at = next((number for number, (x, y) in pairs if x != y), min(len(reference), len(answer)))
    return {"variant": variant, "same": answer[:at], "odd": answer[at : at + 1] or "\u23f9", "rest": answer[at + 1 :]}
