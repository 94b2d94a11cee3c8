"""What an artifact's weights really are, against what its precision's name says of them.

Two figures: `named_share`, of the numbers in the linear layers that take no more bits than the name has; and
`bits_per_weight`, the mean over those layers with the scales of their blocks, where a format counts those. Embedding
and head are apart, for every format gives them more: they count against the share where they take more than
`table_bits`, and never for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from exporter.types import Precision, Weight

_SHOWN = 3  # of the tensors that stayed wider than the name


def held(precision: Precision, weights: Sequence[Weight]) -> dict[str, Any]:
    """The two figures, and `wider`: the largest tensors that take more than the name says, each with its reason."""
    layers = [weight for weight in weights if not weight.table]
    numbers = sum(weight.numbers for weight in layers)
    bits = sum(weight.numbers * weight.bits for weight in layers) / numbers if numbers else None
    if precision.bits is None:
        return {"named_share": None, "bits_per_weight": bits, "wider": None}
    wide = [weight for weight in weights if weight.bits > (_limit(precision, weight))]
    counted = numbers + sum(weight.numbers for weight in wide if weight.table)
    share = 1 - sum(weight.numbers for weight in wide) / counted if counted else 1.0
    return {"named_share": share, "bits_per_weight": bits, "wider": _told(wide) or None}


def _limit(precision: Precision, weight: Weight) -> float:
    assert precision.bits is not None
    if not weight.table:
        return precision.bits
    return float("inf") if precision.table_bits is None else precision.table_bits


def _told(wide: Sequence[Weight]) -> str:
    """model.layers.0.mlp.down_proj (16,384 numbers of 32 bits: rows of 72 are no multiple of the block of 32)"""
    largest = sorted(wide, key=lambda weight: -weight.numbers)[:_SHOWN]
    each = [
        f"{weight.name} ({weight.numbers:,} numbers of {weight.bits:g} bits{weight.why and ': '}{weight.why})"
        for weight in largest
    ]
    more = f" and {len(wide) - _SHOWN} more" if len(wide) > _SHOWN else ""
    return f"wider than its name: {', '.join(each)}{more}" if each else ""
