"""Which item of a knapsack is raised next, and how many steps are enough: the mixes are prefixes of one list.

Each item has rungs, and takes one of them (the multiple-choice knapsack problem). Those that lie on the lower convex
hull of loss over cost are an item's steps, and all the steps are taken in the order of the loss that they save per
cost: the solution of the relaxed problem, in which a part of a step may be taken (Sinha and Zoltners, 1979; Pisinger,
1995). So a prefix costs at most its last step more than the best of all mixes that lose as little, where the lowest
rung is the cheapest and losses add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Upgrade:
    """An item's step to a higher rung: the loss that it saves, and that per cost, infinite where it costs nothing."""

    item: int
    rung: int
    saved: float
    worth: float


def upgrades(losses: Sequence[Sequence[float]], costs: Sequence[Sequence[float]]) -> list[Upgrade]:
    """The steps from all items' lowest rungs to the last ones, the worthiest first; both are of each item's rungs.

    A last rung that saves nothing more is a step at the end: an item that loses nothing alone may in company.
    """
    steps = [step for item, both in enumerate(zip(losses, costs, strict=True)) for step in _hull(item, *both)]
    return sorted(steps, key=lambda step: step.worth, reverse=True)


def _hull(item: int, losses: Sequence[float], costs: Sequence[float]) -> Iterator[Upgrade]:
    at, last, worth = 0, len(losses) - 1, math.inf
    while better := [rung for rung, loss in enumerate(losses) if loss < losses[at]]:
        free = [rung for rung in better if costs[rung] <= costs[at]]
        if free:
            rung = min(free, key=lambda one: (costs[one], losses[one]))
        else:
            saved_per_cost = {one: (losses[at] - losses[one]) / (costs[one] - costs[at]) for one in better}
            rung = max(better, key=lambda one: (saved_per_cost[one], -costs[one]))
            worth = min(worth, saved_per_cost[rung])  # what is rounded must not change the order of an item's steps
        yield Upgrade(item, rung, losses[at] - losses[rung], worth)
        at = rung
    if (losses[at], costs[at]) != (losses[last], costs[last]):
        yield Upgrade(item, last, 0.0, 0.0)


def fewest(
    saved: Sequence[float], budget: float, ends: tuple[float, float], loss: Callable[[int], float]
) -> tuple[int, float]:
    """How many of the steps must be taken until the loss fits, and that loss; `ends`: of none taken, and of all.

    A loss is foretold from those on either side of it: it falls as what the steps that are left would save alone.
    Every third place is the interval's middle: a wrong foretelling costs three times the halvings at most.
    """
    left = np.append(np.cumsum(saved[::-1])[::-1], 0.0)
    (too_few, above), (enough, found) = (0, ends[0]), (len(saved), ends[1])
    tried = 0
    while enough - too_few > 1:
        place = (too_few + enough) // 2
        if tried % 3 < 2 and above > found and left[too_few] > left[enough]:
            share = (budget - found) / (above - found)
            wanted = left[enough] + share * (left[too_few] - left[enough])
            place = int(np.searchsorted(-left, -wanted))  # the first with no more than that left
        place = min(max(place, too_few + 1), enough - 1)
        value, tried = loss(place), tried + 1
        if value <= budget:
            enough, found = place, value
        else:
            too_few, above = place, value
    return enough, found
