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
# as much. Of the squared error over the square of the answer; exporter/measure/lengths.py has the same factor.
_FACTOR, _FLOOR = 4, 1e-4
_NAMED = 4  # wrong answers at most whose questions are told one by one


class Distance(NamedTuple):
    """Of an answer from the nearest right one: the largest error over the largest value, and each row's squared one."""

    largest: float
    squared: Floats


def distance(got: Floats, right: Sequence[Floats], mask: Ids) -> Distance:
    """Where the mask hides nothing."""
    seen = mask == 1 if got.ndim == 3 else np.ones(len(got), bool)
    found = []
    for want in right:
        if want.shape != got.shape:
            found.append(Distance(float("inf"), np.full(1, np.inf, np.float32)))
            continue
        expected, error = want[seen], np.nan_to_num(got[seen] - want[seen], nan=np.inf)
        size = np.maximum((expected**2).sum(-1), 1e-12)
        largest = float(np.abs(error).max() / max(float(np.abs(expected).max()), 1e-12))
        found.append(Distance(largest, (error**2).sum(-1) / size))
    return min(found, key=lambda one: one.largest)


def compared(graph: Graph, asked: Asked, questions: Sequence[Question], exact: bool) -> dict[str, Any]:
    """The outcome of an artifact that was written. `exact`: its arithmetic is float32's."""
    distances: dict[str, Distance] = {}
    near: list[Floats] = []
    for question in questions:
        right = asked.answers(question)
        if not right:  # torch itself cannot
            continue
        try:
            got = graph.answer(question)
        except Exception as error:  # noqa: BLE001  # whatever the engine raises of shapes that it was not made for
            return {"outcome": WRONG, "what": f"{question.name}: {' '.join(str(error).split())[:200]}"}
        distances[question.name] = distance(got, right, question.mask)
        if question.near:
            near.append(distances[question.name].squared)
    by_itself = np.concatenate(near)
    allowed = _FACTOR * (float(by_itself.mean()) + 2 * float(by_itself.std() / len(by_itself) ** 0.5)) + _FLOOR
    errors = {name: one.largest if exact else float(one.squared.mean()) for name, one in distances.items()}
    limit = FLOAT if exact else allowed
    said = {"asked": len(errors), "worst": max(errors.values()), "limit": limit}
    wrong = {name: error for name, error in errors.items() if not error <= limit}
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
