"""Modules with tensors in and tensors out, which is what a tracer takes, around transformers' models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

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


def encoder(model: torch.nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> torch.nn.Module:
    """A model without a cache: forward(*inputs) -> the tensors that its output calls so."""
    import torch

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrapped = model

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            result = self.wrapped(**dict(zip(inputs, tensors, strict=True)), return_dict=True)
            return tuple(getattr(result, name) for name in outputs)

    return Encoder().eval()
