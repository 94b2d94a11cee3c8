"""How many weights are 0, layer by layer, and whether 2:4 holds: counted in the weights, whoever wrote the zeros."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.linear import linear_layers, weight_of

if TYPE_CHECKING:
    from torch import Tensor


def zeros_of(weight: Tensor) -> dict[str, Any]:
    """Of a weight [N, K] of any dtype: `weights` and `zeros` (counts), `share`, and `two_of_four`.

    2:4 holds where of each four neighbours in a row, from the first on, at most two are not 0; it takes K as a multiple
    of 4.
    """
    rows, columns = weight.shape
    used = weight != 0
    zeros = int((~used).sum())
    two_of_four = columns % 4 == 0 and bool((used.reshape(rows, columns // 4, 4).sum(-1) <= 2).all())
    return {"weights": weight.numel(), "zeros": zeros, "share": zeros / weight.numel(), "two_of_four": two_of_four}


def zeros_in(source: Any) -> dict[str, Any]:
    """Of a model's linear layers, or of weights [N, K] by name: `layers` (zeros_of each) and the sums of all.

    The sums are `weights`, `zeros`, `share`, and `two_of_four`: in how many layers it holds. What is no matrix, as a
    state dict's biases, is passed over. A state dict's embeddings are counted as if they were layers, and GPT-2's
    layers stand in it the other way round: give the model where there is one.
    """
    if isinstance(source, Mapping):
        weights = {name: tensor for name, tensor in source.items() if tensor.dim() == 2}
    else:
        weights = {name: weight_of(layer) for name, layer in linear_layers(source).items()}
    layers = {name: zeros_of(weight) for name, weight in weights.items()}
    total, zeros = (sum(its[what] for its in layers.values()) for what in ("weights", "zeros"))
    return {
        "weights": total,
        "zeros": zeros,
        "share": zeros / total if total else 0.0,
        "two_of_four": sum(its["two_of_four"] for its in layers.values()),
        "layers": layers,
    }
