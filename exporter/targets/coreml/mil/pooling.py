"""MIL's pooling, over windows of the dimensions behind the first two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from exporter.targets.coreml.mil.blob import Array
from exporter.targets.coreml.mil.products import padding
from exporter.targets.coreml.mil.shapes import ints

Operator = Callable[..., Any]


def max_pool(
    x: Array, kernel_sizes: Any, strides: Any = None, pad_type: str = "valid", pad: Any = None, ceil_mode: Any = False
) -> Array:
    """[N, C, *D] to [N, C, *D']; what is padded is never the largest."""
    windows, axes = _windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode, np.float32(-np.inf))
    found: Array = windows.max(axes)
    return found


def avg_pool(
    x: Array,
    kernel_sizes: Any,
    strides: Any = None,
    pad_type: str = "valid",
    pad: Any = None,
    exclude_padding_from_average: Any = False,
    ceil_mode: Any = False,
) -> Array:
    """The same of means. Padding is 0, and counts unless it is excluded."""
    how = (kernel_sizes, strides, pad_type, pad, ceil_mode)
    windows, axes = _windows(x, *how, np.float32(0))
    total = windows.sum(axes)
    count: Any = np.float32(np.prod(ints(kernel_sizes)))
    if exclude_padding_from_average:
        count = _windows(np.ones((1, 1, *x.shape[2:]), np.float32), *how, np.float32(0))[0].sum(axes)
    found: Array = total / count
    return found


def _windows(
    x: Array, kernel_sizes: Any, strides: Any, pad_type: str, pad: Any, ceil_mode: Any, filler: Any
) -> tuple[Array, tuple[int, ...]]:
    """[N, C, *D', *K], a view, and the axes K. With `ceil_mode` a last window may reach beyond the padding."""
    sizes = ints(kernel_sizes)
    steps = [1] * len(sizes) if strides is None else ints(strides)
    sides = padding(pad_type, pad, x.shape[2:], sizes, steps)
    if ceil_mode:
        sides = [
            (before, after + _beyond(whole, before, after, size, step))
            for (before, after), whole, size, step in zip(sides, x.shape[2:], sizes, steps, strict=True)
        ]
    padded = np.pad(x, [(0, 0), (0, 0), *sides], constant_values=filler)
    axes = tuple(range(2, x.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(padded, sizes, axes)
    kept = windows[(slice(None), slice(None), *(slice(None, None, step) for step in steps))]
    return kept, tuple(range(x.ndim, x.ndim + len(sizes)))


def _beyond(whole: int, before: int, after: int, size: int, step: int) -> int:
    """What a last window that begins inside lacks of the input."""
    rest = (before + whole + after - size) % step
    starts = before + whole + after - size - rest + step  # where the next window would begin
    return step - rest if rest and starts < before + whole else 0


POOLING: dict[str, Operator] = {"avg_pool": avg_pool, "max_pool": max_pool}
