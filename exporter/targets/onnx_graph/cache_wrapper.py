"""Modules with tensors in and tensors out, which is what a tracer takes, around transformers' models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from exporter.errors import BuildError

if TYPE_CHECKING:
    import torch


def cached_decoder(model: torch.nn.Module, inputs: Sequence[str]) -> torch.nn.Module:
    """A causal LM whose KV cache is plain tensors.

    forward(*inputs, key 0, value 0, key 1, …) -> (logits, key 0, value 0, …): `inputs` are the names that the first
    tensors are given to the model by, logits are [batch, new, V], and keys and values [batch, heads, past, head size]
    with past grown by new on the way out.

    Every layer keeps its whole past. transformers' own cache drops what a sliding layer no longer sees, and does it
    with Python integers that a trace would freeze; the mask alone, made from true positions, hides it just as well.
    """
    import torch
    from transformers.cache_utils import DynamicCache, DynamicLayer

    make_layer: Callable[[], Any] = DynamicLayer  # which transformers leaves untyped

    class CachedDecoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrapped = model

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            past = tensors[len(inputs) :]
            cache = DynamicCache()
            cache.layer_class_to_replicate = None
            layers = [make_layer() for _ in past[0::2]]
            for layer, keys, values in zip(layers, past[0::2], past[1::2], strict=True):
                layer.lazy_initialization(keys, values)
                layer.keys, layer.values = keys, values
            cache.layers = list(layers)
            arguments = dict(zip(inputs, tensors, strict=False))
            output = self.wrapped(**arguments, past_key_values=cache, use_cache=True, return_dict=True)
            presents = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
            return (output.logits, *presents)

    return CachedDecoder().eval()


def encoder(model: torch.nn.Module, inputs: Sequence[str], output: str) -> torch.nn.Module:
    """A model without a cache: forward(*inputs) -> the tensor that its output calls `output`."""
    import torch

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrapped = model

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            result = self.wrapped(**dict(zip(inputs, tensors, strict=True)), return_dict=True)
            answer: torch.Tensor = getattr(result, output)
            return answer

    return Encoder().eval()


def answer_shapes(model: Any) -> tuple[int, list[tuple[tuple[int, int], tuple[int, int]]]]:
    """V, and for each layer the (heads, head size) of its keys and of its values, as the model itself builds them.

    They are taken from a short forward: neither a configuration nor optimum's table of them knows all of the variants.
    Raises BuildError where a layer keeps anything else than keys and values, such as the state of a linear attention.
    """
    import torch
    from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

    with torch.no_grad():
        output = model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=True, return_dict=True)
    name, cache = type(model).__name__, getattr(output, "past_key_values", None)
    if not isinstance(cache, Cache):
        raise BuildError(f"{name} cannot be exported: it has no KV cache, which a decoder's graph needs")
    kinds = {type(layer) for layer in cache.layers}
    strange = sorted(kind.__name__ for kind in kinds - {DynamicLayer, DynamicSlidingWindowLayer})
    if strange:
        raise BuildError(f"{name} cannot be exported: its cache holds more than keys and values ({', '.join(strange)})")
    layers: list[Any] = list(cache.layers)
    pairs = [(layer.keys.shape, layer.values.shape) for layer in layers]
    return output.logits.shape[-1], [((keys[1], keys[3]), (values[1], values[3])) for keys, values in pairs]
