"""The experts of one stack together: what is known of some serves those that few tokens of the calibration chose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exporter.checkpoint.experts import expert_layers
from exporter.scheme import Scheme

Ranges = dict[tuple[str, bool], tuple[float, float]]  # by a layer's name and whether the range is signed
FEW = 64  # tokens: the extremes of fewer say little of those of the texts to come


def with_stacks(model: Any, ranges: Ranges, rows: Mapping[str, int]) -> tuple[Ranges, int]:
    """Ranges for all the experts, and how many have none of their own: they get what spans all of their stack's.

    `ranges` are those of the layers that were fed, `rows` by how many tokens. Without experts nothing changes.
    """
    experts = expert_layers(model)
    wide: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    for (name, signed), one in ranges.items():
        if name in experts:
            wide.setdefault((experts[name], signed), []).append(one)
    spans = {key: (min(low for low, _ in found), max(high for _, high in found)) for key, found in wide.items()}
    few = [name for name in experts if rows.get(name, 0) < FEW]
    kinds = {signed for _, signed in spans}
    keys = [(name, signed) for name in few for signed in kinds if (experts[name], signed) in spans]
    shared = {(name, signed): spans[experts[name], signed] for name, signed in keys}
    return ranges | shared, len({name for name, _ in shared})


def with_range(name: str, scheme: Scheme | None, ranges: Ranges) -> Scheme | None:
    """A layer's scheme with the range that was found, where it needs one and has none."""
    if scheme is None or scheme.input != "static" or scheme.range is not None:
        return scheme
    return scheme.model_copy(update={"range": ranges[name, scheme.signed]})
