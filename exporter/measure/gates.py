"""Gates: a limit, what was measured, and whether the evidence is strong enough to pass.

A sampled figure passes only if the value plus two standard errors is still within the limit; a gate that fails says
whether more tokens could decide it. Sizes and probe errors are not sampled: they are compared as they are.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace

from exporter.report.result import Gate, Result
from exporter.types import Gates


def judge(limits: Gates, result: Result, asked: frozenset[str], scored: int) -> list[Gate]:
    """A gate for each limit whose figure this task has, or that was `asked` for. `scored`: tokens or passages.

    A limit's name tells its sense and its figure: min_top1 is a lower limit on the row's top1.
    """
    gates = []
    # What has a perplexity is scored token by token.
    unit = "passages" if all(result.quality[name].value is None for name in ("ppl", "ppl_ratio")) else "tokens"
    for field in fields(limits):
        limit = getattr(limits, field.name)
        sense, name = field.name.split("_", 1)
        figure = result.figure(name)
        if limit is None:
            continue
        if figure.value is not None:
            gate = _judge_one(field.name, sense == "max", limit, figure.value, figure.se or 0.0, scored, unit)
            if figure.detail is not None and not gate.passed:
                gate = replace(gate, detail=figure.detail)
            gates.append(gate)
        elif field.name in asked:
            gates.append(Gate(field.name, limit, None, False, "not measured for this artifact"))
    return gates


def _judge_one(name: str, at_most: bool, limit: float, value: float, error: float, scored: int, unit: str) -> Gate:
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
            f"within the limit, but not by two standard errors ({error:.2g} each): about {more} {unit} could decide it",
        )
    if room > -2 * error:
        return Gate(
            name,
            limit,
            value,
            False,
            f"beyond the limit by less than two standard errors ({error:.2g} each): more {unit} could decide it",
        )
    return Gate(
        name, limit, value, False, f"beyond the limit; more {unit} would not change it" if error else "beyond the limit"
    )
