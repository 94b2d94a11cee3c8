"""Chooses what each layer gets: the cheapest mix of a target's schemes whose simulated loss fits a budget.

Each group of layers with a common input is quantized alone, by the cheapest scheme, and its loss measured, or estimated
from gradients (exporter.quantization.estimate) and measured of the worst alone. What loses much is then looked at layer
by layer where only weights are rounded: of query, key and value it is nearly always the value, a fifth of them
(SmolLM2: 0.0064 of 0.0070 nats). Groups are given the next scheme in the order of loss per cost, the worst first. The
losses of groups do not add up exactly, so how many of them are needed is found by simulating the whole mix, where the
groups' own losses foretell that it fits, and in the middle of what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.progress import counting
from exporter.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

    from exporter.quantization.sensitivity import LossMeter

Progress = Callable[[int, int], None]
_RANKED_ON = 1  # window: an order needs less evidence than a loss, and there are hundreds of groups
_SIMULATED = 10  # groups whose estimate is held against a simulation


@dataclass(frozen=True)
class Layer:
    """A linear layer: its multiplications for each token (N * K), and what it may get, cheapest first; None: float."""

    size: int
    choices: tuple[Scheme | None, ...]

    def dump(self) -> dict[str, Any]:
        """For JSON."""
        return {"size": self.size, "choices": [one and one.model_dump(mode="json") for one in self.choices]}

    @classmethod
    def load(cls, values: Mapping[str, Any]) -> Layer:
        return cls(values["size"], tuple(one and Scheme.model_validate(one) for one in values["choices"]))


@dataclass(frozen=True)
class Group:
    """Layers that get the same rung of their choices, one or all that read an input; `loss`: theirs at the lowest."""

    names: tuple[str, ...]
    size: int
    loss: float


@dataclass(frozen=True)
class Choice:
    """A mix, its simulated loss, and whether that is within the budget; `groups` are ranked, the worst first."""

    schemes: Mapping[str, Scheme | None]
    loss: float
    fits: bool
    groups: Sequence[Group] = field(repr=False)


def rank_by_estimates(
    meter: LossMeter, layers: Mapping[str, Layer], weights: Mapping[str, Tensor], progress: Progress
) -> tuple[list[Group], dict[str, Any]]:
    """The same order from one backward pass; and how it was found, for the record.

    The worst are simulated: their estimates give way to that, and the others' are scaled by the median of both's ratio.
    """
    wanted = _wanted(meter, layers)
    lowest = {name: layers[name].choices[0] for names in wanted for name in names}
    told = meter.estimates(wanted, lowest, weights, progress)
    groups = [Group(names, _size(names, layers), loss) for names, (loss, _) in zip(wanted, told, strict=True)]
    alone = {name: loss for _, parts in told for name, loss in parts.items()}
    apart = _apart(groups, layers, meter)
    groups = [group for group in groups if group not in apart]
    groups += [Group((name,), layers[name].size, alone[name]) for group in apart for name in group.names]
    ranked = _ordered(groups)
    worst = ranked[:_SIMULATED]
    simulated = counting(worst, meter.step("sensitivity of the worst"))
    losses = [meter.loss({name: lowest[name] for name in one.names}, weights, _RANKED_ON) for one in simulated]
    ratios = sorted(loss / one.loss for loss, one in zip(losses, worst, strict=True) if one.loss > 0)
    scale = ratios[len(ratios) // 2] if ratios else 1.0
    found = [replace(one, loss=loss) for one, loss in zip(worst, losses, strict=True)]
    found += [replace(one, loss=one.loss * scale) for one in ranked[_SIMULATED:]]
    about = {"how": "estimated", "simulated": len(worst), "scale": scale, "rank_correlation": _spearman(worst, losses)}
    return _ordered(found), about


def _spearman(groups: Sequence[Group], losses: Sequence[float]) -> float | None:
    """Of the groups' estimates and losses; None of fewer than three."""
    if len(groups) < 3:
        return None
    ranks = [np.argsort(np.argsort(values)) for values in ([one.loss for one in groups], losses)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _wanted(meter: LossMeter, layers: Mapping[str, Layer]) -> list[tuple[str, ...]]:
    wanted = [tuple(name for name in names if name in layers) for names in meter.groups]
    return [names for names in wanted if names]


def _size(names: Sequence[str], layers: Mapping[str, Layer]) -> int:
    return sum(layers[name].size for name in names)


def _apart(groups: Sequence[Group], layers: Mapping[str, Layer], meter: LossMeter) -> list[Group]:
    """Those that lose more than usual, and whose layers may get schemes that differ."""
    usual = sum(group.loss for group in groups) / max(sum(group.size for group in groups), 1)
    return [group for group in groups if group.loss > usual * group.size and _are_apart(group.names, layers, meter)]


def _ordered(groups: Sequence[Group]) -> list[Group]:
    return sorted(groups, key=lambda group: group.loss / group.size, reverse=True)


def rank(
    meter: LossMeter, layers: Mapping[str, Layer], weights: Mapping[str, Tensor], progress: Progress
) -> list[Group]:
    """Measures each group alone at its lowest rung. Those that lose most for what they save come first."""
    wanted = _wanted(meter, layers)

    def measured(names: tuple[str, ...]) -> Group:
        loss = meter.loss({name: layers[name].choices[0] for name in names}, weights, _RANKED_ON)
        return Group(names, _size(names, layers), loss)

    groups = [measured(names) for names in counting(wanted, progress)]
    apart = _apart(groups, layers, meter)
    parts = [(name,) for group in apart for name in group.names]
    groups = [group for group in groups if group not in apart]
    groups += [measured(names) for names in counting(parts, meter.step("sensitivity of single layers"))]
    return _ordered(groups)


def _are_apart(names: Sequence[str], layers: Mapping[str, Layer], meter: LossMeter) -> bool:
    """Whether layers with a common input may get schemes that differ: where none of them rounds the input."""
    schemes = (scheme for name in names for scheme in layers[name].choices)
    floats = all(scheme is None or scheme.input == "float" for scheme in schemes)
    return len(names) > 1 and floats and meter.stacked.isdisjoint(names)


def choose(
    meter: LossMeter,
    layers: Mapping[str, Layer],
    ranked: Callable[[], Sequence[Group]],
    budget: float,
    weights: Mapping[str, Tensor],
) -> Choice:
    """The mix with the fewest groups above the lowest rung that fits; where none does, the one that loses least.

    `ranked` finds the groups' order: asked only where the layers do not fit at their lowest rung all together.
    `weights` are the rounded ones of that rung, where they are not the nearest.
    """
    lowest = {name: layer.choices[0] for name, layer in layers.items()}
    value = meter.loss(lowest, weights)
    if value <= budget:
        return Choice(lowest, value, True, ())
    groups = ranked()
    rungs = max(len(layer.choices) for layer in layers.values())

    def mix(low: int, raised: int) -> dict[str, Scheme | None]:
        rung = {name: low + (place < raised) for place, group in enumerate(groups) for name in group.names}
        return {name: layers[name].choices[min(at, len(layers[name].choices) - 1)] for name, at in rung.items()}

    def loss(low: int, raised: int) -> float:
        schemes = mix(low, raised)
        unraised = {name for name, scheme in schemes.items() if scheme == lowest[name]}
        return meter.loss(schemes, _Some(weights, unraised))

    for low in range(rungs - 1):
        none_raised, value = value, loss(low, len(groups))
        if value <= budget:
            enough, found = fewest(groups, budget, (none_raised, value), partial(loss, low))
            return Choice(mix(low, enough), found, True, groups)
    return Choice(mix(max(rungs - 2, 0), len(groups)), value, False, groups)


def fewest(
    groups: Sequence[Group], budget: float, ends: tuple[float, float], loss: Callable[[int], float]
) -> tuple[int, float]:
    """How many of the worst groups must be raised until the loss fits, and that loss; `ends`: of none raised, and all.

    A loss is foretold from those on either side of it: it falls as what the groups that are left would lose alone.
    Every third place is the interval's middle: a wrong foretelling costs three times the halvings at most.
    """
    left = np.append(np.cumsum([one.loss for one in reversed(groups)])[::-1], 0.0)
    (too_few, above), (enough, found) = (0, ends[0]), (len(groups), ends[1])
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


@dataclass(frozen=True)
class _Some(Mapping[str, "Tensor"]):
    """Those of the weights that are named: each is fetched, as from a file, when it is asked for."""

    weights: Mapping[str, Tensor]
    names: Set[str]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self:
            raise KeyError(name)
        return self.weights[name]

    def __contains__(self, name: object) -> bool:
        return name in self.names and name in self.weights

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.weights if name in self.names)

    def __len__(self) -> int:
        return sum(1 for _ in self)
