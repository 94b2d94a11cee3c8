"""AWQ (Lin et al. 2023, arXiv 2306.00978): weights that meet large inputs are scaled up before they are rounded.

The input channels of a fold are divided by s_j = mean|X_j|^alpha and the weights that read them multiplied, so that
rounding the weights costs least where it matters most; alpha is the one, of a grid, that leaves the least error of the
layers' outputs. The paper then searches each group's clipping: exporter.quantization.grid tries ranges for each group
already, and `clipped` weighs their errors with the inputs' mean squares. Layers that no fold reaches keep scales of 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.linear import linear_layers, shared_weights, weight_of
from exporter.progress import Counted, counting, nobody
from exporter.quantization.folds import Fold, fold
from exporter.quantization.grid import quantized
from exporter.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

ALPHAS = tuple(step / 10 for step in range(1, 11))
_LIMIT = 1e4  # between the largest factor and 1, and 1 and the smallest


@dataclass(frozen=True)
class Scaled:
    """What became of a fold: `alpha` 0, it was left as it was.

    `before` and `after`: the squared error of the layers' outputs with rounded weights, of the outputs' own.
    """

    fold: Fold
    alpha: float
    before: float
    after: float


@dataclass(frozen=True)
class Weighed:
    """What AWQ did: its folds, and the layers with a scheme that no fold reaches, whose scales are 1."""

    folds: tuple[Scaled, ...]
    unscaled: tuple[str, ...]


def awq(
    model: Any,
    schemes: Mapping[str, Scheme | None],
    folds: Iterable[Fold],
    rows: Mapping[str, Tensor],
    clip: bool = True,
    progress: Counted = nobody,
) -> Weighed:
    """Scales a float32 model in place and, with `clip`, rounds its weights to their grids.

    `rows` [rows, K]: some of each layer's inputs on calibration text, of the model as it is
    (exporter.quantization.input_rows). Without `clip` the model computes what it did. Weights that two modules share
    stay.
    """
    linear = linear_layers(model)
    factors: dict[str, Tensor] = {}
    done = []
    for one in counting(list(folds), progress):
        inner = {name: scheme for name in one.layers if (scheme := schemes.get(name)) and name in rows}
        if inner:
            chosen, scaled = _best(one, {name: weight_of(linear[name]) for name in inner}, inner, rows)
            fold(model, one, chosen)
            factors |= dict.fromkeys(inner, chosen[one.index])
            done.append(scaled)
    wanted = {name: scheme for name, scheme in schemes.items() if scheme is not None}
    for name in wanted.keys() & rows.keys() - shared_weights(model) if clip else ():
        weight = weight_of(linear[name])
        weight.copy_(clipped(weight, wanted[name], rows[name] / factors.get(name, 1.0)))
    return Weighed(tuple(done), tuple(name for name in wanted if name not in factors))


def _best(
    one: Fold, weights: Mapping[str, Tensor], schemes: Mapping[str, Scheme], rows: Mapping[str, Tensor]
) -> tuple[Tensor, Scaled]:
    """The factors [channels] of least error, 1 among them."""
    inputs = rows[next(iter(weights))]  # the layers of a fold are fed one input
    tried = []
    for alpha in (0.0, *ALPHAS):
        factors = salience(one, inputs, alpha)
        tried.append((_error(one, factors, weights, schemes, inputs), alpha, factors))
    after, alpha, factors = min(tried, key=lambda it: it[0])
    return factors, Scaled(one, alpha, tried[0][0], after)


def salience(one: Fold, inputs: Tensor, alpha: float) -> Tensor:
    """Factors [channels] for input rows [rows, K]: mean |X|^alpha around 1; 1 for a channel that is dead."""
    means = one.per_channel(inputs.abs().mean(0))
    alive = means > 0
    if not alive.any():
        return means.new_ones(len(means))
    factors = means**alpha
    middle = (factors[alive].max() * factors[alive].min()).sqrt()
    return (factors / middle).clamp(1 / _LIMIT, _LIMIT).where(alive, 1.0)


def clipped(weight: Tensor, scheme: Scheme, inputs: Tensor) -> Tensor:
    """A weight [N, K] on the scheme's grid, ranges chosen by the error that the inputs [rows, K] weigh."""
    squares = inputs.square().mean(0)
    return quantized(weight, scheme, squares if squares.sum() > 0 else None).floats()


def _error(
    one: Fold, factors: Tensor, weights: Mapping[str, Tensor], schemes: Mapping[str, Scheme], inputs: Tensor
) -> float:
    """How far the layers' outputs are off with rounded weights, relative to the outputs' mean square."""
    wrong = whole = 0.0
    own = factors[one.index]
    for name, scheme in schemes.items():
        weight = weights[name]
        off = clipped(weight * own, scheme, inputs / own) / own - weight
        wrong += float((inputs @ off.T).square().sum())
        whole += float((inputs @ weight.T).square().sum())
    return wrong / whole if whole > 0 else 0.0
