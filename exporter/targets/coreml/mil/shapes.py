"""MIL's operators on shapes: what they give are numbers that they got, often as a view of the same memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from exporter.targets.coreml.mil.blob import Array

Operator = Callable[..., Any]


def ints(values: Any) -> list[int]:
    """A constant or computed shape, axes or the like."""
    return [int(value) for value in np.atleast_1d(values)]


def reshape(x: Array, shape: Array) -> Array:
    """A 0 is the input's size at that place, where the ranks agree; -1 is what remains."""
    sizes = ints(shape)
    if len(sizes) == np.ndim(x):
        sizes = [old if new == 0 else new for old, new in zip(np.shape(x), sizes, strict=True)]
    return np.reshape(x, sizes)


def reshape_like(
    x: Array, ref_tensors: Sequence[Array], begins: Sequence[Any], ends: Sequence[Any], end_masks: Sequence[Any]
) -> Array:
    sizes: list[int] = []
    for tensor, begin, end, whole in zip(ref_tensors, begins, ends, end_masks, strict=True):
        sizes += tensor.shape[int(begin) :] if whole else tensor.shape[int(begin) : int(end)]
    return np.reshape(x, sizes)


def squeeze(x: Array, axes: Any = None) -> Array:
    return np.squeeze(x, None if axes is None else tuple(ints(axes)))


def flatten2d(x: Array, axis: Any = 1) -> Array:
    axis = int(axis) % x.ndim if axis < 0 else int(axis)
    return np.reshape(x, (int(np.prod(x.shape[:axis])), -1))


def concat(values: Sequence[Array], axis: Any, interleave: Any = False) -> Array:
    if not interleave:
        return np.concatenate([np.atleast_1d(value) for value in values], axis=int(axis))  # sizes come as scalars
    axis = int(axis) % values[0].ndim
    stacked = np.stack(values, axis=axis + 1)
    shape = list(values[0].shape)
    shape[axis] *= len(values)
    return stacked.reshape(shape)


def split(x: Array, axis: Any, num_splits: Any = None, split_sizes: Any = None) -> list[Array]:
    if split_sizes is None:
        return np.split(x, int(num_splits), axis=int(axis))
    return np.split(x, np.cumsum(ints(split_sizes))[:-1].tolist(), axis=int(axis))


def pad(x: Array, pad: Array, mode: str = "constant", constant_val: Any = 0.0) -> Array:
    """`pad` has before and after of the last dimensions, outermost first."""
    sizes = np.reshape(ints(pad), (-1, 2)).tolist()
    widths = [[0, 0]] * (x.ndim - len(sizes)) + sizes
    if mode == "constant":
        return np.pad(x, widths, constant_values=constant_val)
    return np.pad(x, widths, mode="edge" if mode == "replicate" else "reflect")


def range_1d(start: Any, end: Any, step: Any) -> Array:
    return np.arange(start, end, step)


def one_hot(indices: Array, one_hot_vector_size: Any, axis: Any = -1, on_value: Any = 1, off_value: Any = 0) -> Array:
    hot = np.expand_dims(indices, -1) == np.arange(int(one_hot_vector_size))
    return np.moveaxis(np.where(hot, on_value, off_value), -1, int(axis))


def band_part(x: Array, lower: Any = -1, upper: Any = -1) -> Array:
    rows, columns = np.arange(x.shape[-2])[:, None], np.arange(x.shape[-1])
    kept = np.ones(x.shape[-2:], bool)
    if lower >= 0:
        kept &= rows - columns <= lower
    if upper >= 0:
        kept &= columns - rows <= upper
    return np.where(kept, x, x.dtype.type(0))


def sliding_windows(x: Array, axis: Any, size: Any, stride: Any = 1) -> Array:
    axis = int(axis) % x.ndim
    windows = np.lib.stride_tricks.sliding_window_view(x, int(size), axis)
    kept = np.take(windows, np.arange(0, windows.shape[axis], int(stride)), axis)
    return np.moveaxis(kept, -1, axis + 1)


SHAPES: dict[str, Operator] = {
    "band_part": band_part,
    "concat": concat,
    "expand_dims": lambda x, axes: np.expand_dims(x, tuple(ints(axes))),
    "fill": lambda shape, value=0.0: np.full(ints(shape), value),
    "fill_like": lambda ref_tensor, value=0.0: np.full(np.shape(ref_tensor), value),
    "flatten2d": flatten2d,
    "identity": lambda x: x,
    "one_hot": one_hot,
    "pad": pad,
    "reshape": reshape,
    "reshape_like": reshape_like,
    "reverse": lambda x, axes=None: np.flip(x, None if axes is None else tuple(ints(axes))),
    "shape": lambda x: np.array(np.shape(x), np.int32),
    "sliding_windows": sliding_windows,
    "split": split,
    "squeeze": squeeze,
    "stack": lambda values, axis: np.stack(values, axis=int(axis)),
    "tile": lambda x, reps: np.tile(x, ints(reps)),
    "transpose": lambda x, perm: np.transpose(x, ints(perm)),
}

# Computed: what it gives is rounded.
RANGES: dict[str, Operator] = {"range_1d": range_1d}
