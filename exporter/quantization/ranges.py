"""The range of a static input: from the histogram of what a layer was fed to the (low, high) that its codes span.

Each method takes a histogram and whether the range is symmetric about 0 (int8) or not (uint8 with a zero point), and
returns (low, high) with low <= 0 <= high. A layer that was fed nothing but zeros gets a range of 1: no scale is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import ceil, floor, log2

import numpy as np
from numpy.typing import NDArray

from exporter.quantization.grid import input_grid
from exporter.quantization.statistics import Histogram
from exporter.scheme import Scheme

Range = tuple[float, float]
Method = Callable[[Histogram, bool], Range]

_FINE, _LEVELS = 2048, 128  # bins and codes on each side of 0, as in Migacz's talk
_SAME = 1e-6  # of a size's exponent: a range that has the size already keeps it
_SELDOM = 1e-4  # counts where Q has none and P has outliers: the divergence must not be infinite


def min_max(histogram: Histogram, symmetric: bool) -> Range:
    """All that was seen: nothing is clipped, and one outlier costs all others their resolution."""
    return _range(histogram.minimum, histogram.maximum, symmetric)


def percentile(histogram: Histogram, symmetric: bool, share: float = 0.9999) -> Range:
    """What holds `share` of the values: of their magnitudes, or with half of the rest cut from either end.

    Within a bin, values are taken to be spread evenly. Where so many are zeros that only they are left, min-max.
    """
    cut = (1 - share) / 2
    low, high = (0.0, _magnitude(histogram, share)) if symmetric else _quantiles(histogram, cut, 1 - cut)
    return _range(low, high, symmetric) if low < 0 or high > 0 else min_max(histogram, symmetric)


def entropy(histogram: Histogram, symmetric: bool) -> Range:
    """The clipped range whose codes tell most of the distribution: Migacz, 8-bit Inference with TensorRT (GTC 2017).

    The values are counted in 2048 bins of equal width on each side of 0. For each clip of at least 128 of them, P is
    the distribution with what is clipped moved into the outermost bins, and Q what the codes keep of it without: a
    code's values, spread over the bins that it stands for and that are not empty. The clip with the least KL(P || Q)
    is taken. The talk has magnitudes only; here both signs are kept, and an asymmetric range ends at the clip or where
    the values end. So the range is never less than a sixteenth of min-max: huge outliers are for other methods.
    """
    low, high = min_max(histogram, symmetric)
    reach = max(-low, high)
    counts = np.diff(_below(histogram, np.linspace(-reach, reach, 2 * _FINE + 1)))
    counts[0] += histogram.counts.sum() - counts.sum()  # what lies at the minimum exactly
    ends = floor(_FINE * (1 + low / reach)), ceil(_FINE * (1 + high / reach))
    best, clip = np.inf, _FINE
    for tried in range(_FINE, _LEVELS - 1, -_LEVELS // 8):
        begin, end = max(_FINE - tried, ends[0]), min(_FINE + tried, ends[1])
        if end - begin >= 2 * _LEVELS and (divergence := _divergence(counts, begin, end)) < best - 1e-9:
            best, clip = divergence, tried
    return _range(max(low, -clip / _FINE * reach), min(high, clip / _FINE * reach), symmetric)


def squared_error(histogram: Histogram, symmetric: bool) -> Range:
    """The range with the least expected squared error, that of rounding within it and of clipping outside together.

    Such clipping is analysed by Banner et al. 2018 (https://arxiv.org/abs/1810.05723); here the error is integrated
    over the histogram, on the codes that exporter.quantization.grid gives the range. The search is over magnitudes in
    steps of 15%, then of 1%; both ends of an asymmetric range are searched in turn, beginning with the best symmetric
    one.
    """
    low, high = min_max(histogram, symmetric)
    clip = _least(lambda tried: _error(histogram, tried, tried), max(-low, high))
    if symmetric:
        return -clip, clip
    below, above = min(-low, clip), min(high, clip)
    for _ in range(2):
        if high > 0:
            above = _least(partial(_error, histogram, below), high)
        if low < 0:
            below = _least(partial(_error, histogram, above=above), -low)
    return 0.0 - below, above  # not -0.0


METHODS: Mapping[str, Method] = {
    "min-max": min_max,
    "percentile": percentile,
    "entropy": entropy,
    "mse": squared_error,
}


def rounded_up(found: Range, per_octave: int) -> Range:
    """The range, widened until its greater end is a power of 2 ** (1 / per_octave): layers come to share ranges."""
    low, high = found
    reach = max(-low, high)
    wider = 2 ** (ceil(log2(reach) * per_octave - _SAME) / per_octave)
    return low / reach * wider, high / reach * wider  # in this order: the greater end is the power exactly


def _range(low: float, high: float, symmetric: bool) -> Range:
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        high = 1.0
    return (-max(-low, high), max(-low, high)) if symmetric else (low, high)


def _steps(histogram: Histogram) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Edges in ascending order, and how many values lie below each."""
    edges = np.stack([histogram.low, histogram.high], 1).ravel()
    below = histogram.counts.cumsum().astype(np.float64)
    return edges, np.stack([below - histogram.counts, below], 1).ravel()


def _below(histogram: Histogram, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many values are at most each of these."""
    return np.interp(values, *_steps(histogram), left=0)


def _quantiles(histogram: Histogram, *shares: float) -> list[float]:
    edges, below = _steps(histogram)
    return [float(value) for value in np.interp(np.array(shares) * below[-1], below, edges)]


def _magnitude(histogram: Histogram, share: float) -> float:
    """What `share` of the absolute values do not exceed."""
    mirrored = Histogram(-histogram.high[::-1], -histogram.low[::-1], histogram.counts[::-1])
    clips = np.unique(np.abs(_steps(histogram)[0]))
    total = histogram.counts.sum()
    within = _below(histogram, clips) + _below(mirrored, clips) - total
    return float(np.interp(share * total, within, clips))


def _divergence(counts: NDArray[np.float64], begin: int, end: int) -> float:
    """KL(P || Q) of clipping to the bins from `begin` to `end`."""
    inside = counts[begin:end]
    codes = np.arange(end - begin) * (2 * _LEVELS) // (end - begin)
    used = inside > 0
    kept = np.bincount(codes, inside) / np.bincount(codes, used).clip(1)
    q = np.where(used, kept[codes], 0)
    p = inside.copy()
    p[0] += counts[:begin].sum()
    p[-1] += counts[end:].sum()
    seen = p > 0
    p, q = p[seen], q[seen].clip(_SELDOM)
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


def _least(cost: Callable[[float], float], reach: float) -> float:
    """The magnitude up to `reach` of the least cost: the best of a coarse search, then of a fine one around it."""
    coarse = min(reach * 0.85 ** np.arange(60), key=cost)
    return float(min((coarse * 1.01 ** np.arange(16, -17, -1)).clip(max=reach), key=cost))


def _error(histogram: Histogram, below: float, above: float) -> float:
    """The sum of squared errors on the codes of the range (-below, above); in a bin values are spread evenly."""
    scheme = Scheme(weight="int8", group=None, input="static", range=(-below, above))
    step, zero, lowest, highest = input_grid(scheme)
    bottom, top = step * (lowest - zero), step * (highest - zero)

    def parts(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """Of each value: its code's distance from that of 0, the rest that is rounded off, and what is clipped."""
        inside = values.clip(bottom, top)
        codes = np.rint(inside / step)
        return codes, inside - codes * step, values - inside

    def integral(values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of the squared error from 0 to each value: step**3 / 12 for each whole code on the way."""
        codes, rest, clipped = parts(values)
        return (codes * (step**3 / 4) + rest * rest * rest + clipped * clipped * clipped) / 3  # ** 3 is slow

    width = histogram.high - histogram.low
    single = width == 0  # the bin of an exact minimum or maximum alone
    _, rest, clipped = parts(histogram.low)
    spread = (integral(histogram.high) - integral(histogram.low)) / np.where(single, 1, width)
    return float((histogram.counts * np.where(single, rest**2 + clipped**2, spread)).sum())
