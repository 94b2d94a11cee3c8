"""What groups of layers lose alone: measured or estimated, at each rung of what they may get.

Each group of layers with a common input is quantized alone, by the cheapest scheme, and its loss measured, or estimated
from gradients (exporter.quantization.estimate) and measured of the worst alone. What loses much is then looked at layer
by layer where only weights are rounded: of query, key and value it is nearly always the value, a fifth of them
(SmolLM2: 0.0064 of 0.0070 nats).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.progress import Counted, counting
from exporter.quantization.layer import Layer, own_weights

if TYPE_CHECKING:
    from torch import Tensor

    from exporter.quantization.sensitivity import LossMeter

_RANKED_ON = 1  # window: an order needs less evidence than a loss, and there are hundreds of groups
_SIMULATED = 10  # groups whose estimate is held against a simulation, or that are measured at their other rungs too


@dataclass(frozen=True)
class Group:
    """Layers that get the same rung of their choices, one or all that read an input; `losses`: theirs at each rung."""

    names: tuple[str, ...]
    size: int
    losses: tuple[float, ...]

    @property
    def loss(self) -> float:
        """At the lowest rung."""
        return self.losses[0]

    def dump(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def load(cls, values: Mapping[str, Any]) -> Group:
        return cls(tuple(values["names"]), values["size"], tuple(values["losses"]))


def rank(
    meter: LossMeter, layers: Mapping[str, Layer], weights: Mapping[str, Tensor], progress: Counted
) -> list[Group]:
    """Measures each group alone at its lowest rung. Those that lose most for what they save come first.

    At the other rungs the worst are measured too; the rest lose as many times less there as these in the median.
    """
    wanted = _wanted(meter, layers)

    def measured(several: Sequence[tuple[str, ...]], rung: int, progress: Counted) -> list[float]:
        return [_loss(meter, layers, weights, names, rung) for names in counting(several, progress)]

    def grouped(several: Sequence[tuple[str, ...]], progress: Counted) -> list[Group]:
        losses = measured(several, 0, progress)
        return [Group(names, _size(names, layers), (loss,)) for names, loss in zip(several, losses, strict=True)]

    groups = grouped(wanted, progress)
    apart = _apart(groups, layers, meter)
    parts = [(name,) for group in apart for name in group.names]
    alone = grouped(parts, meter.step("sensitivity of single layers"))
    groups = _ordered([group for group in groups if group not in apart] + alone)
    for rung in range(1, _rungs(layers)):
        rounded = [one for one in groups if any(layers[name].at(rung) for name in one.names)]
        worst = rounded[:_SIMULATED]
        further = meter.step(f"sensitivity of the worst at rung {rung + 1}")
        losses = dict(zip(worst, measured([one.names for one in worst], rung, further), strict=True))
        less = _median(loss / one.loss for one, loss in losses.items() if one.loss > 0)
        foretold = {one: one.loss * less for one in rounded} | losses
        groups = [replace(one, losses=(*one.losses, foretold.get(one, 0.0))) for one in groups]
    return groups


def rank_by_estimates(
    meter: LossMeter, layers: Mapping[str, Layer], weights: Mapping[str, Tensor], progress: Counted
) -> tuple[list[Group], dict[str, Any]]:
    """The same order from one backward pass for each rung; and how it was found, for the record.

    The worst are simulated: their estimates give way to that, and all others are scaled by the median of both's ratio.
    """
    wanted = _wanted(meter, layers)
    names = [name for group in wanted for name in group]
    told = []  # of each rung the losses of the groups, with those of their layers
    for rung in range(quantized := _quantized(layers)):
        schemes = {name: layers[name].at(rung) for name in names}
        further = meter.step(f"sensitivity at rung {rung + 1}") if rung else progress
        told.append(meter.estimates(wanted, schemes, own_weights(weights, layers, schemes), further))
    floats = (0.0,) * (_rungs(layers) - quantized)
    groups = [
        Group(names, _size(names, layers), (*(loss for loss, _ in rungs), *floats))
        for names, *rungs in zip(wanted, *told, strict=True)
    ]
    alone = [{name: loss for _, parts in rung for name, loss in parts.items()} for rung in told]
    apart = _apart(groups, layers, meter)
    groups = [group for group in groups if group not in apart]
    for name in (name for group in apart for name in group.names):
        groups.append(Group((name,), layers[name].size, (*(rung[name] for rung in alone), *floats)))
    ranked = _ordered(groups)
    worst = ranked[:_SIMULATED]
    simulated = counting(worst, meter.step("sensitivity of the worst"))
    losses = [_loss(meter, layers, weights, one.names, 0) for one in simulated]
    scale = _median(loss / one.loss for loss, one in zip(losses, worst, strict=True) if one.loss > 0)
    found = [replace(one, losses=tuple(loss * scale for loss in one.losses)) for one in ranked]
    for at, loss in enumerate(losses):
        found[at] = replace(found[at], losses=(loss, *found[at].losses[1:]))
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


def _are_apart(names: Sequence[str], layers: Mapping[str, Layer], meter: LossMeter) -> bool:
    """Whether layers with a common input may get schemes that differ: where none of them rounds the input."""
    schemes = (scheme for name in names for scheme in layers[name].choices)
    floats = all(scheme is None or scheme.input == "float" for scheme in schemes)
    return len(names) > 1 and floats and meter.stacked.isdisjoint(names)


def _loss(
    meter: LossMeter, layers: Mapping[str, Layer], weights: Mapping[str, Tensor], names: Sequence[str], rung: int
) -> float:
    """Simulated, of layers at a rung and all others in float."""
    schemes = {name: layers[name].at(rung) for name in names}
    return meter.loss(schemes, own_weights(weights, layers, schemes), _RANKED_ON)


def _rungs(layers: Mapping[str, Layer]) -> int:
    return max(len(layer.choices) for layer in layers.values())


def _quantized(layers: Mapping[str, Layer]) -> int:
    """The rungs at which a layer is rounded still."""
    return max(sum(scheme is not None for scheme in layer.choices) for layer in layers.values())


def _median(ratios: Iterable[float]) -> float:
    """1 of none."""
    found = list(ratios)
    return median(found) if found else 1.0
