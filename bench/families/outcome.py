"""What came out for a family and a precision: right, or why not.

right    every answer is transformers', within the limit below
wrong    the program said nothing, and an answer is another: which question, and how far
gates    the artifact is there, and the program's own gates fail: exit status 3
refused  the program says in one line why there is none, before any work or after it
failed   something was raised that no line was written for
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bench.families.asked import Asked, Question
from bench.families.graph import Graph
from exporter.runner import Floats, Ids

RIGHT, WRONG, GATES, REFUSED, FAILED = "right", "wrong", "gates", "refused", "failed"
# A float32 answer, of its largest value: other orders of the same sums stay below a tenth of it, and what is left out
# (an epsilon, a scale rounded to two decimals) is above it.
FLOAT = 1e-4
# What a format costs it costs alone, padded and cached alike: a mask or a window that is lost costs hundreds of times
# as much. Of the squared error over the square of the answer, a text's mean; exporter/measure/lengths.py has the same
# factor.
_FACTOR, _FLOOR = 4, 1e-4
_NAMED = 4  # wrong answers at most whose questions are told one by one


class Distance(NamedTuple):
    """Of an answer from the nearest right one: the largest error over the largest value; each text's squared one."""

    largest: float
    squared: Floats


def distance(got: Floats, right: Sequence[Floats], mask: Ids, size: float) -> Distance:
    """Where the mask hides nothing. `size`: of an answer of one vector a text, what the squared error is a part of."""
    token = got.ndim == 3
    seen = mask == 1 if token else np.ones(len(got), bool)
    found = []
    for want in right:
        if want.shape != got.shape:
            found.append(Distance(float("inf"), np.full(1, np.inf, np.float32)))
            continue
        expected, error = want[seen], np.nan_to_num(got[seen] - want[seen], nan=np.inf)
        squared = (error**2).sum(-1) / (np.maximum((expected**2).sum(-1), 1e-12) if token else size)
        if token:  # a text is one observation: an expert that was chosen otherwise early changes all that follows
            squared = np.stack([rows.mean() for rows in np.split(squared, np.cumsum(seen.sum(1))[:-1])])
        whole = float(np.abs(expected).max()) if token else size**0.5
        found.append(Distance(float(np.abs(error).max() / max(whole, 1e-12)), squared))
    return min(found, key=lambda one: one.largest)


def size_of(answers: Sequence[Floats]) -> float:
    """The usual square of an answer: a classifier's few numbers, a reranker's one, may be near zero by themselves."""
    squares = [(rows**2).sum(-1).ravel() for rows in answers]
    return max(float(np.concatenate(squares).mean()), 1e-12) if squares else 1.0


def compared(graph: Graph, asked: Asked, questions: Sequence[Question], exact: bool) -> dict[str, Any]:
    """The outcome of an artifact that was written. `exact`: its arithmetic is float32's."""
    distances: dict[str, Distance] = {}
    near: list[Floats] = []
    answers = {question.name: asked.answers(question) for question in questions}
    size = size_of([rows for right in answers.values() for rows in right])
    for question in questions:
        right = answers[question.name]
        if not right:  # torch itself cannot
            continue
        try:
            got = graph.answer(question)
        except Exception as error:  # noqa: BLE001  # whatever the engine raises of shapes that it was not made for
            return {"outcome": WRONG, "what": f"{question.name}: {' '.join(str(error).split())[:200]}"}
        distances[question.name] = distance(got, right, question.mask, size)
        if question.near:
            near.append(distances[question.name].squared)
    by_itself = np.concatenate(near)
    usual, spread, known = float(by_itself.mean()), float(by_itself.std()), len(by_itself)

    def limit(one: Distance) -> float:
        """Of the mean of so many other texts, two standard errors of both included."""
        texts = len(one.squared)
        return FLOAT if exact else _FACTOR * (usual + 2 * spread * (1 / known + 1 / texts) ** 0.5) + _FLOOR

    errors = {name: one.largest if exact else float(one.squared.mean()) for name, one in distances.items()}
    limits = {name: limit(one) for name, one in distances.items()}
    closest = max(errors, key=lambda name: errors[name] / limits[name])
    said = {"asked": len(errors), "worst": errors[closest], "limit": limits[closest]}
    wrong = {name: error for name, error in errors.items() if not error <= limits[name]}
    if not wrong:
        return {"outcome": RIGHT} | said
    worst = max(wrong, key=lambda name: wrong[name])
    kind = "relative error" if exact else "squared relative error"
    others = f"; {', '.join(name for name in wrong if name != worst)}" if 1 < len(wrong) <= _NAMED else ""
    what = f"{len(wrong)} of {len(errors)} answers, the most {worst} ({kind} {wrong[worst]:.2g}){others}"
    return {"outcome": WRONG, "what": what} | said


def of_gates(row: Mapping[str, Any]) -> str | None:
    """Those of the program's own gates that an artifact misses, in words."""
    missed = [gate for gate in row["gates"] if not gate["passed"]]
    told = (f"{one['name']} {one['value']:.2g}" if one["value"] is not None else one["name"] for one in missed)
    return ", ".join(told) or None
