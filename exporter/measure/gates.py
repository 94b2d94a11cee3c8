"""Gates: a limit, what was measured, and whether the evidence is strong enough to pass.

A sampled figure passes only if the value plus two standard errors is still within the limit; a gate that fails says
whether more tokens could decide it. Sizes and probe errors are not sampled: they are compared as they are. What no gate
judged has not passed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace

from exporter.measure import preprocessing
from exporter.measure.lengths import FIGURE
from exporter.report.result import Gate, Result
from exporter.types import Gates


def judge(limits: Gates, result: Result, asked: frozenset[str], scored: int, unit: str = "token") -> list[Gate]:
    """A gate for each limit whose figure this task has, or that was `asked` for. `scored`: how many of its unit.

    A limit's name tells its sense and its figure: min_top1 is a lower limit on the row's top1.
    """
    gates = []
    for field in fields(limits):
        limit = getattr(limits, field.name)
        sense, name = field.name.split("_", 1)
        figure = result.figure(name)
        if limit is None:
            continue
        if figure.value is not None:
            gate = _judge_one(field.name, sense == "max", limit, figure.value, figure.se or 0.0, scored, f"{unit}s")
            if figure.detail is not None and not gate.passed:
                gate = replace(gate, detail=figure.detail)
            gates.append(gate)
        elif field.name in asked:
            gates.append(Gate(field.name, limit, None, False, "not measured for this artifact"))
    return gates + _of_its_own(result)


def _of_its_own(result: Result) -> list[Gate]:
    """The gates of every artifact that has their figures: beyond a boundary it must be what it is below, and its image
    processor must be the checkpoint's."""
    gates = []
    for name, limit in {FIGURE: 1.0, preprocessing.FIGURE: preprocessing.LIMIT}.items():
        figure = result.figure(name)
        if figure.value is not None:
            wrong = figure.value > limit
            gates.append(Gate(f"max_{name}", limit, figure.value, not wrong, (figure.detail or "") if wrong else ""))
    return gates


# Figures of an artifact's own working: none says whether its answers are the reference's.
_OF_ITSELF = frozenset({"tokenizer_errors", "cache_kl", preprocessing.FIGURE})
_FLAGS = ("ppl_ratio", "cosine", "regression_error", "kl")  # which limit to advise, by what was measured


def unjudged(gates: Sequence[Gate], result: Result) -> Gate | None:
    """The gate that fails where none of these judged how near an artifact's answers are to the reference's; or None.

    Neither a size does, nor a figure that the reference's answers made meaningless, which its detail says.
    """
    for gate in gates:
        name = gate.name.split("_", 1)[1]
        told = result.quality.get(name) if name not in _OF_ITSELF else None
        if told is not None and (told.detail is None or not gate.passed):
            return None
    measured = next((name for name in _FLAGS if result.figure(name).value is not None), "kl")
    flag = f"{'--min' if measured == 'cosine' else '--max'}-{measured.replace('_', '-')}"
    return Gate("min_quality_gates", 1, 0, False, f"no quality gate judged it; give one: {flag} X")


def _judge_one(name: str, at_most: bool, limit: float, value: float, error: float, scored: int, units: str) -> Gate:
    if not math.isfinite(value):
        return Gate(name, limit, None, False, f"the value is {value}")
    # Distances to the limit, positive on the right side of it.
    room = limit - value if at_most else value - limit
    if room >= 2 * error:
        return Gate(name, limit, value, True)
    if room > 0:
        more = math.ceil(scored * (2 * error / room) ** 2)
        return Gate(
            name,
            limit,
            value,
            False,
            f"within the limit, but not by two standard errors ({error:.2g} each): "
            f"about {more} {units} could decide it",
        )
    if room > -2 * error:
        return Gate(
            name,
            limit,
            value,
            False,
            f"beyond the limit by less than two standard errors ({error:.2g} each): more {units} could decide it",
        )
    return Gate(
        name,
        limit,
        value,
        False,
        f"beyond the limit; more {units} would not change it" if error else "beyond the limit",
    )
