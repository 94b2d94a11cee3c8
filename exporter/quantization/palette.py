"""The palettes that weights are chosen from: k-means in one dimension, weighted.

Lloyd's algorithm on sorted values, where a cluster is a span and its mean a difference of sums. It begins where a fine
quantizer of the values' own distribution would lie (density to the power of a third: Panter and Dite, 1951), and so is
near the best that there is from the first step on. Weights that lie on a palette of that size already keep it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from exporter.runner import Floats
from exporter.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

_ROWS = 16  # that share a palette, where they divide a layer's

_STEPS = 40  # of Lloyd's algorithm at most
_STILL = 1e-4  # of the values' span: centres that move less have arrived
_KNOTS = 1024  # of the distribution that the first centres are read off


def palettes(weight: Floats, scheme: Scheme, importance: Floats | None = None) -> tuple[Floats, NDArray[np.uint8]]:
    """Tables float32 [N / rows, 2^bits] and indices [N, K] into them, of a weight [N, K]: `rows` rows share one, 16 or
    the largest power of 2 that divides N.

    `importance` [K] >= 0: how much a squared error in each input channel counts. Table values are float16 numbers, and
    each weight has the nearest of them.
    """
    rows = int(np.gcd(_ROWS, len(weight)))
    count, groups = 1 << scheme.bits, weight.reshape(-1, rows * weight.shape[1])
    counts = None if importance is None else np.tile(importance.astype(np.float64), rows)
    tables = np.empty((len(groups), count), np.float32)
    indices = np.empty(groups.shape, np.uint8)
    for number, group in enumerate(groups):
        table = _centres(group, count, counts).astype(np.float16).astype(np.float32)
        tables[number] = table
        indices[number] = np.searchsorted((table[1:] + table[:-1]) / 2, group)
    return tables, indices.reshape(weight.shape)


def palettized(weight: Tensor, scheme: Scheme, importance: Floats | None = None) -> Tensor:
    """A float32 weight [N, K] as its palettes hold it."""
    import torch

    tables, indices = palettes(weight.detach().numpy(), scheme, importance)
    values = np.take_along_axis(tables, indices.reshape(len(tables), -1).astype(np.int64), 1)
    return torch.from_numpy(values.reshape(weight.shape))


def _centres(values: Floats, count: int, importance: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """`count` centres, ascending."""
    order = np.argsort(values, kind="stable")
    points = values[order].astype(np.float64)
    distinct = points[np.diff(points, prepend=-np.inf) > 0]
    if len(distinct) <= count:
        return np.pad(distinct, (0, count - len(distinct)), mode="edge")
    weights = np.ones(len(points)) if importance is None else importance[order]
    if not weights.any():  # channels that were never fed: all count alike
        weights = np.ones(len(points))
    mass, moment = (np.concatenate([[0.0], np.cumsum(part)]) for part in (weights, weights * points))
    centres = _first(points, mass, count)
    span = points[-1] - points[0]
    for _ in range(_STEPS):
        edges = np.concatenate([[0], np.searchsorted(points, (centres[1:] + centres[:-1]) / 2), [len(points)]])
        inside = np.diff(mass[edges])
        means = np.divide(np.diff(moment[edges]), inside, out=centres.copy(), where=inside > 0)
        moved = np.abs(means - centres).max()
        centres = np.sort(means)
        if moved <= _STILL * span:
            break
    return centres


def _first(points: NDArray[np.float64], mass: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Centres spaced by the cube root of the density, from the quantiles of sorted points."""
    knots = points[np.searchsorted(mass[1:-1], np.linspace(0, mass[-1], _KNOTS))]
    room = np.concatenate([[0.0], np.cumsum(np.diff(knots) ** (2 / 3))])
    if room[-1] == 0:
        return np.full(count, points[0])
    centres: NDArray[np.float64] = np.interp((np.arange(count) + 0.5) / count * room[-1], room, knots)
    return centres
