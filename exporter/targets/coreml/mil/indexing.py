"""MIL's slices, gathers and scatters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from exporter.targets.coreml.mil.blob import Array
from exporter.targets.coreml.mil.shapes import ints

Operator = Callable[..., Any]


def _key(
    rank: int, begin: Any, end: Any, stride: Any, begin_mask: Any, end_mask: Any, squeeze_mask: Any
) -> tuple[int | slice, ...]:
    """What NumPy indexes by; a mask that is not given is False everywhere."""
    begins, ends = ints(begin), ints(end)
    strides = [1] * rank if stride is None else ints(stride)
    masks = [[False] * rank if mask is None else np.atleast_1d(mask) for mask in (begin_mask, end_mask, squeeze_mask)]
    return tuple(
        begins[i]
        if masks[2][i]
        else slice(None if masks[0][i] else begins[i], None if masks[1][i] else ends[i], strides[i])
        for i in range(rank)
    )


def slice_by_index(
    x: Array,
    begin: Any,
    end: Any,
    stride: Any = None,
    begin_mask: Any = None,
    end_mask: Any = None,
    squeeze_mask: Any = None,
) -> Any:
    return x[_key(x.ndim, begin, end, stride, begin_mask, end_mask, squeeze_mask)]


def slice_by_size(x: Array, begin: Any, size: Any) -> Array:
    """A size of -1 is all that follows."""
    begins = [at % whole if at < 0 else at for at, whole in zip(ints(begin), x.shape, strict=True)]
    found: Array = x[tuple(slice(at, None if n == -1 else at + n) for at, n in zip(begins, ints(size), strict=True))]
    return found


def slice_update(
    x: Array,
    update: Array,
    begin: Any,
    end: Any,
    stride: Any = None,
    begin_mask: Any = None,
    end_mask: Any = None,
    squeeze_mask: Any = None,
    owned: bool = False,
) -> Array:
    """`owned`, which is the evaluator's: nothing else reads `x` any more, and it need not be copied."""
    found = x if owned else np.array(x)
    key = _key(x.ndim, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    if found[key].shape != np.shape(update):  # NumPy would repeat what is too small
        raise ValueError(f"an update of shape {np.shape(update)} does not fit a slice of shape {found[key].shape}")
    found[key] = update
    return found


def gather(x: Array, indices: Array, axis: Any = 0, batch_dims: Any = 0, validate_indices: Any = False) -> Array:
    axis, batches = int(axis) % np.ndim(x), int(batch_dims)
    if batches == 0:
        return np.take(x, indices, axis=axis)
    return _batched(lambda a, b: np.take(a, b, axis=axis - batches), x, indices, batches)


def gather_along_axis(x: Array, indices: Array, axis: Any = 0, validate_indices: Any = False) -> Array:
    return np.take_along_axis(x, np.asarray(indices, np.int64), int(axis))


def gather_nd(x: Array, indices: Array, batch_dims: Any = 0, validate_indices: Any = False) -> Any:
    if int(batch_dims) == 0:
        return x[tuple(np.moveaxis(indices, -1, 0))]
    return _batched(lambda a, b: a[tuple(np.moveaxis(b, -1, 0))], x, indices, int(batch_dims))


def _batched(function: Callable[[Array, Array], Array], x: Array, indices: Array, batches: int) -> Array:
    outer = x.shape[:batches]
    rows = x.reshape(-1, *x.shape[batches:])
    places = indices.reshape(-1, *indices.shape[batches:])
    found = np.stack([function(row, place) for row, place in zip(rows, places, strict=True)])
    return found.reshape(*outer, *found.shape[1:])


_MODES = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.true_divide,
    "max": np.maximum,
    "min": np.minimum,
}


def _scattered(data: Array, key: Any, updates: Array, mode: str) -> Array:
    found = np.array(data)
    if mode == "update":
        found[key] = updates
    else:
        _MODES[mode].at(found, key, updates)
    return found


def scatter(
    data: Array, indices: Array, updates: Array, axis: Any = 0, mode: str = "add", validate_indices: Any = False
) -> Array:
    key = (*[slice(None)] * (int(axis) % data.ndim), indices)
    return _scattered(data, key, updates, mode)


def scatter_along_axis(
    data: Array, indices: Array, updates: Array, axis: Any = 0, mode: str = "add", validate_indices: Any = False
) -> Array:
    key: list[Array] = list(np.indices(indices.shape, sparse=True))
    key[int(axis) % data.ndim] = indices
    return _scattered(data, tuple(key), updates, mode)


def scatter_nd(data: Array, indices: Array, updates: Array, mode: str = "add", validate_indices: Any = False) -> Array:
    return _scattered(data, tuple(np.moveaxis(indices, -1, 0)), updates, mode)


INDEXING: dict[str, Operator] = {
    "gather": gather,
    "gather_along_axis": gather_along_axis,
    "gather_nd": gather_nd,
    "slice_by_index": slice_by_index,
    "slice_by_size": slice_by_size,
    "slice_update": slice_update,
}

# These compute: what they give is rounded.
SCATTERS: dict[str, Operator] = {
    "scatter": scatter,
    "scatter_along_axis": scatter_along_axis,
    "scatter_nd": scatter_nd,
}
