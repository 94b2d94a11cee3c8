"""What a layer costs under a scheme: bytes of its weights, or the time of its products (exporter.pipeline.timing)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.scheme import Scheme

if TYPE_CHECKING:
    from exporter.quantization.layer import Layer

Shape = tuple[int, int]  # [N, K]: output channels, inputs
_FLOAT, _HALF = 4, 2  # bytes of a weight or a channel's scale in float32, and of the scale of a group
_PALETTE = (16, 2)  # rows that share a palette, and bytes of one of its values (exporter.quantization.palette)


@dataclass(frozen=True)
class Costs:
    """`of` a layer of that shape under a scheme, None: float; in `unit`, which the record names."""

    unit: str
    of: Callable[[Shape, Scheme | None], float]

    def total(self, layers: Mapping[str, Layer], schemes: Mapping[str, Scheme | None]) -> float:
        """Of a mix."""
        return sum(self.of(layers[name].shape, scheme) for name, scheme in schemes.items())


def bytes_of(shape: Shape, scheme: Scheme | None) -> float:
    """Of a weight matrix: codes, scales, zero points and palettes; where it stays in float, as float32."""
    channels, inputs = shape
    if scheme is None:
        return _FLOAT * channels * inputs
    codes = channels * inputs * scheme.bits / 8
    if scheme.palette:
        rows, value = _PALETTE
        return codes + -(-channels // rows) * (1 << scheme.bits) * value
    zero_point = 0.0 if scheme.symmetric else scheme.bits / 8
    if scheme.group is None:
        return codes + channels * (_FLOAT + zero_point)
    return codes + channels * -(-inputs // scheme.group) * (_HALF + zero_point)


SIZE = Costs("bytes", bytes_of)
