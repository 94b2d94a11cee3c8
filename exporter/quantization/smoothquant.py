"""SmoothQuant (Xiao et al. 2022, arXiv 2211.10438): outliers of a layer's inputs are moved into its weights.

An input channel j is divided by s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) where it is made, and the weights that read
it are multiplied: the float model computes what it did, and its inputs fit eight bits better. Where channels can be
scaled is exporter.quantization.folds' to say. The paper has one alpha for a model; here each fold may have the one that
leaves the least error of its layers' outputs, no scaling among them.

Ranges of inputs that were measured before no longer hold afterwards: `inputs_after` says what does, and for all but
min-max the smoothed model is calibrated again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.checkpoint.linear import linear_layers, weight_of
from exporter.progress import Counted, counting, nobody
from exporter.quantization.folds import Fold, fold
from exporter.quantization.grid import rounded, rounded_input
from exporter.quantization.statistics import Histogram, Statistics
from exporter.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_LIMIT = 1e5  # factors stay within 1/_LIMIT and _LIMIT: a channel that is all but dead must not overflow


@dataclass(frozen=True)
class Smoothed:
    """What became of a fold: `alpha` None, it was left as it was. The inputs were divided by `factors` [channels].

    `before` and `after`: the squared error of the layers' outputs with inputs and weights rounded, of the outputs' own.
    """

    fold: Fold
    alpha: float | None
    before: float
    after: float
    factors: Tensor


def smooth(
    model: Any,
    schemes: Mapping[str, Scheme | None],
    folds: Iterable[Fold],
    absmax: Mapping[str, Tensor],
    rows: Mapping[str, Tensor],
    alpha: float | None = None,
    progress: Counted = nobody,
) -> list[Smoothed]:
    """Smooths a float32 model in place, at the folds of layers whose input is rounded; says what it did to each.

    `absmax` [K] is the largest |input| of each layer's input channels on calibration text, `rows` [rows, K] some of its
    inputs (exporter.quantization.input_rows). `alpha`: the same for all, 0 to 1; None: the best of ALPHAS for each
    fold, tried on the rows with inputs and weights rounded as the schemes say, inputs over +-absmax where they are
    static.
    """
    linear = linear_layers(model)
    done = []
    for one in counting(list(folds), progress):
        inner = {name: scheme for name in one.layers if (scheme := schemes.get(name)) and scheme.input != "float"}
        if not inner or any(name not in absmax or name not in rows for name in inner):
            continue
        weights = {name: weight_of(linear[name]) for name in inner}
        largest = absmax[next(iter(inner))]  # the layers of a fold are fed one input
        ones = largest.new_ones(one.channels)
        expected = {name: rows[name] @ weight.T for name, weight in weights.items()}
        before = _error(one, ones, weights, inner, largest, rows, expected)
        tried: list[tuple[float, float | None, Tensor]] = [] if alpha is not None else [(before, None, ones)]
        for exponent in ALPHAS if alpha is None else (alpha,):
            factors = smoothing(one, largest, [weight_of(linear[name]) for name in one.layers], exponent)
            tried.append((_error(one, factors, weights, inner, largest, rows, expected), exponent, factors))
        after, chosen, factors = min(tried, key=lambda it: it[0])
        if chosen is not None:
            fold(model, one, factors)
        done.append(Smoothed(one, chosen, before, after, factors))
    return done


def inputs_after(fed: Mapping[str, Statistics], done: Iterable[Smoothed]) -> dict[str, Statistics]:
    """What the layers are fed once their inputs were divided: each channel's ends and squares, by the factors.

    Between the ends nothing is known of a smoothed input's values together: its histogram is one bin.
    """
    after = dict(fed)
    for one in done:
        factors = one.factors[one.fold.index].numpy()
        for name in (name for name in one.fold.layers if name in fed):
            its = after[name]
            low, high = its.low / factors, its.high / factors
            first, last = np.array([[low.min()], [high.max()]], np.float64)
            between = Histogram(first, last, np.array([its.rows * low.size]))
            after[name] = Statistics(its.rows, low, high, its.squares / factors.astype(np.float64) ** 2, between)
    return after


def smoothing(one: Fold, absmax: Tensor, weights: Iterable[Tensor], alpha: float) -> Tensor:
    """The paper's factors [channels] for inputs' absmax [K] and weights [N, K]; 1 for a channel dead in either."""
    import torch

    inputs = one.per_channel(absmax)
    columns = one.per_channel(torch.stack([weight.abs().amax(0) for weight in weights]).amax(0))
    factors = (inputs**alpha / columns ** (1 - alpha)).clamp(1 / _LIMIT, _LIMIT)
    return factors.where((inputs > 0) & (columns > 0), 1.0)


def _error(
    one: Fold,
    factors: Tensor,
    weights: Mapping[str, Tensor],
    schemes: Mapping[str, Scheme],
    absmax: Tensor,
    rows: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
) -> float:
    """How far the layers' outputs are off with both sides rounded, relative to the outputs' mean square."""
    wrong = whole = 0.0
    own = factors[one.index]
    largest = float((absmax / own).max())
    if largest == 0:  # inputs that are all 0 have no error, and no range
        return 0.0
    for name, scheme in schemes.items():
        tried = scheme.model_copy(update={"range": (-largest, largest) if scheme.input == "static" else None})
        output = rounded_input(rows[name] / own, tried) @ rounded(weights[name] * own, tried).T
        wrong += float((output - expected[name]).square().sum())
        whole += float(expected[name].square().sum())
    return wrong / whole if whole > 0 else 0.0
