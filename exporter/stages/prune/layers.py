"""The layers that get zeros, and those that stay dense, with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporter.checkpoint.linear import linear_layers, shared_weights, weight_of
from exporter.errors import BuildError

if TYPE_CHECKING:
    from torch import Tensor


def prunable(model: Any, two_of_four: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights [N, K] to prune, views of what the model holds, by layer; and of the other linear layers why not.

    A head's errors are the model's own, and it is small or tied: it stays dense, whatever it is called. Embeddings are
    no linear layers; experts that are one parameter are none either, but are told of, by the parameter's name. 2:4
    counts in fours: a layer whose inputs are no multiple of 4 stays dense too. Raises BuildError for NaN or Inf in a
    weight.
    """
    shared = shared_weights(model)
    body = {id(module) for module in model.base_model.modules()}
    weights, dense = {}, {}
    for name, layer in linear_layers(model).items():
        weight = weight_of(layer)
        if not weight.isfinite().all():
            raise BuildError(f"{name}: its weight holds NaN or Inf: the model is broken, nothing can be pruned by it")
        if name in shared:
            dense[name] = "another module has the same weight"
        elif id(layer) not in body or layer is model.get_output_embeddings():
            dense[name] = "a head"
        elif two_of_four and weight.shape[1] % 4:
            dense[name] = f"its {weight.shape[1]} inputs are no multiple of 4"
        else:
            weights[name] = weight
    stacks = [name for name, parameter in model.named_parameters() if parameter.dim() > 2]
    return weights, dense | dict.fromkeys(stacks, "no matrix of its own: experts in one stack, or a convolution")
