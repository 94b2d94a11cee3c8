"""Chooses what each layer gets: the cheapest mix of a target's schemes whose simulated loss fits a budget.

Of what groups of layers lose alone (ranking.py) and what each rung costs (cost.py) a knapsack makes the order in which
they are raised (knapsack.py). The losses of groups do not add up exactly, so how many steps are needed is found by
simulating the whole mix, where the groups' own losses foretell that it fits, and in the middle of what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from exporter.quantization.cost import Costs
from exporter.quantization.knapsack import fewest, upgrades
from exporter.quantization.layer import Layer, own_weights
from exporter.quantization.ranking import Group
from exporter.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

    from exporter.quantization.sensitivity import LossMeter


@dataclass(frozen=True)
class Choice:
    """A mix, its simulated loss, and whether that is within the budget; `groups` are ranked, the worst first."""

    schemes: Mapping[str, Scheme | None]
    loss: float
    fits: bool
    groups: Sequence[Group] = field(repr=False)


def choose(
    meter: LossMeter,
    layers: Mapping[str, Layer],
    ranked: Callable[[], Sequence[Group]],
    budget: float,
    weights: Mapping[str, Tensor],
    costs: Costs,
) -> Choice:
    """The mix that fits after the fewest steps of the knapsack; where none does, that of the last rungs.

    `ranked` finds the groups: asked only where the layers do not fit at their lowest rung all together. A layer leaves
    that rung for the loss alone: where another costs less and loses less, that is what is raised first. `weights` are
    the rounded ones of that rung, where they are not the nearest.
    """
    lowest = {name: layer.choices[0] for name, layer in layers.items()}
    value = meter.loss(lowest, weights)
    if value <= budget:
        return Choice(lowest, value, True, ())
    groups = ranked()
    steps = upgrades([one.losses for one in groups], [_prices(one, layers, costs) for one in groups])

    def mix(taken: int) -> dict[str, Scheme | None]:
        rungs = {step.item: step.rung for step in steps[:taken]}
        return {name: layers[name].at(rungs.get(at, 0)) for at, group in enumerate(groups) for name in group.names}

    def loss(taken: int) -> float:
        schemes = mix(taken)
        return meter.loss(schemes, own_weights(weights, layers, schemes))

    least = loss(len(steps))
    if least > budget:
        return Choice(mix(len(steps)), least, False, groups)
    enough, found = fewest([step.saved for step in steps], budget, (value, least), loss)
    return Choice(mix(enough), found, True, groups)


def _prices(group: Group, layers: Mapping[str, Layer], costs: Costs) -> list[float]:
    """At each rung."""
    rungs = [{name: layers[name].at(rung) for name in group.names} for rung in range(len(group.losses))]
    return [costs.total(layers, schemes) for schemes in rungs]
