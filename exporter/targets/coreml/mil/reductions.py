"""MIL's reductions, and what sorts along an axis. Sums are float32's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from exporter.targets.coreml.mil.blob import Array

Operator = Callable[..., Any]


def _axes(axes: Any) -> tuple[int, ...] | None:
    return None if axes is None else tuple(int(axis) for axis in np.atleast_1d(axes))


def _reduction(function: Callable[..., Any]) -> Operator:
    def reduce(x: Array, axes: Any = None, keep_dims: Any = False) -> Any:
        return function(x, axis=_axes(axes), keepdims=bool(keep_dims))

    return reduce


def _log_sum_exp(x: Array, axis: Any, keepdims: bool) -> Array:
    largest = np.max(x, axis=axis, keepdims=True)
    total: Array = np.log(np.sum(np.exp(x - largest), axis=axis, keepdims=True)) + largest
    return total if keepdims else np.squeeze(total, axis)


def _argument(function: Callable[..., Any]) -> Operator:
    def reduce(x: Array, axis: Any = -1, keep_dims: Any = False, output_dtype: str = "int32") -> Any:
        return function(x, axis=int(axis), keepdims=bool(keep_dims))

    return reduce


def cumsum(x: Array, axis: Any = 0, exclusive: Any = False, reverse: Any = False) -> Array:
    ordered = np.flip(x, axis) if reverse else x
    found = np.cumsum(ordered, axis=axis, dtype=x.dtype)
    if exclusive:
        found = found - ordered
    return np.flip(found, axis) if reverse else found


def argsort(x: Array, axis: Any = -1, ascending: Any = False) -> Array:
    return np.argsort(x if ascending else -x, axis=axis, kind="stable")


def topk(
    x: Array,
    k: Any = 1,
    axis: Any = -1,
    ascending: Any = False,
    sort: Any = True,
    return_indices: Any = True,
    output_indices_dtype: str = "int32",
) -> Any:
    """Values and, where asked for, indices; of equals the first."""
    order = np.take(argsort(x, axis, ascending), np.arange(int(k)), axis=axis)
    values = np.take_along_axis(x, order, axis)
    return (values, order) if return_indices else values


REDUCTIONS: dict[str, Operator] = {
    "cumsum": cumsum,
    "reduce_l1_norm": _reduction(lambda x, **how: np.sum(np.abs(x), **how)),
    "reduce_l2_norm": _reduction(lambda x, **how: np.sqrt(np.sum(np.square(x), **how))),
    "reduce_log_sum": _reduction(lambda x, **how: np.log(np.sum(x, **how))),
    "reduce_log_sum_exp": _reduction(_log_sum_exp),
    "reduce_mean": _reduction(np.mean),
    "reduce_prod": _reduction(np.prod),
    "reduce_sum": _reduction(np.sum),
    "reduce_sum_square": _reduction(lambda x, **how: np.sum(np.square(x), **how)),
}

EXACT: dict[str, Operator] = {
    "argsort": argsort,
    "reduce_argmax": _argument(np.argmax),
    "reduce_argmin": _argument(np.argmin),
    "reduce_max": _reduction(np.max),
    "reduce_min": _reduction(np.min),
    "topk": topk,
}
