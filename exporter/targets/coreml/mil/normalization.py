"""MIL's softmax and norms, in float32 inside: what is declared float16 is rounded at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from exporter.targets.coreml.mil.blob import Array
from exporter.targets.coreml.mil.shapes import ints

Operator = Callable[..., Any]


def softmax(x: Array, axis: Any = -1) -> Array:
    found: Array = x - np.max(x, axis=int(axis), keepdims=True)
    np.exp(found, out=found)
    found /= np.sum(found, axis=int(axis), keepdims=True)
    return found


def layer_norm(x: Array, axes: Any = None, gamma: Any = None, beta: Any = None, epsilon: Any = 1e-5) -> Array:
    """`gamma` and `beta` have the shape of the axes that are normalized."""
    over = tuple(range(x.ndim)) if axes is None else tuple(axis % x.ndim for axis in ints(axes))
    shape = [size if axis in over else 1 for axis, size in enumerate(x.shape)]
    return _normalized(x, over, epsilon, gamma, beta, shape)


def instance_norm(x: Array, gamma: Any = None, beta: Any = None, epsilon: Any = 1e-5) -> Array:
    """Over all but the first two dimensions; `gamma` and `beta` of the second."""
    return _normalized(x, tuple(range(2, x.ndim)), epsilon, gamma, beta, [1, -1, *[1] * (x.ndim - 2)])


def _normalized(x: Array, over: tuple[int, ...], epsilon: Any, gamma: Any, beta: Any, shape: list[int]) -> Array:
    found: Array = x - np.mean(x, axis=over, keepdims=True)
    variance = np.mean(np.square(found), axis=over, keepdims=True)
    found /= np.sqrt(variance + np.float32(epsilon))
    if gamma is not None:
        found *= np.reshape(gamma, shape)
    if beta is not None:
        found += np.reshape(beta, shape)
    return found


def batch_norm(
    x: Array, mean: Array, variance: Array, gamma: Any = None, beta: Any = None, epsilon: Any = 1e-5
) -> Array:
    shape = [1, -1, *[1] * (x.ndim - 2)]
    scale = 1 / np.sqrt(variance + np.float32(epsilon))
    if gamma is not None:
        scale = scale * gamma
    found: Array = (x - np.reshape(mean, shape)) * np.reshape(scale, shape)
    return found if beta is None else found + np.reshape(beta, shape)


def l2_norm(x: Array, epsilon: Any = 1e-6) -> Array:
    """Over the last three dimensions."""
    total = np.sum(np.square(x), axis=(-3, -2, -1), keepdims=True)
    found: Array = x / np.sqrt(total + np.float32(epsilon))
    return found


NORMALIZATION: dict[str, Operator] = {
    "batch_norm": batch_norm,
    "instance_norm": instance_norm,
    "l2_norm": l2_norm,
    "layer_norm": layer_norm,
    "softmax": softmax,
}
