"""A KV cache that an engine is given and gives back: new tokens are written into tensors of a fixed length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def outer_cache(layers: Sequence[tuple[Tensor, Tensor]], start: Tensor) -> Any:
    """A transformers Cache over keys and values [1, heads, C, size]; new ones are written from row `start` on.

    Each layer's `keys` and `values` are the whole tensors then, which the caller returns. litert-torch has an operator
    for it, which the engine's DYNAMIC_UPDATE_SLICE is made of: a `start` that leaves no room is moved back there.
    """
    import torch
    from litert_torch.generative.custom_ops.dynamic_update_slice import dynamic_update_slice
    from transformers.cache_utils import DynamicCache, DynamicLayer

    zero = torch.zeros((), dtype=torch.int32)

    class OuterLayer(DynamicLayer):
        def __init__(self, keys: Tensor, values: Tensor) -> None:
            super().__init__()  # type: ignore[no-untyped-call]  # transformers leaves it so
            self.keys, self.values = keys, values

        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            at = [zero, zero, start, zero]
            keys: Tensor = dynamic_update_slice(self.keys, key_states, at)
            values: Tensor = dynamic_update_slice(self.values, value_states, at)
            self.keys, self.values = keys, values
            return keys, values

        def get_seq_length(self) -> int:
            return 0  # positions and masks are given

    cache = DynamicCache()
    cache.layer_class_to_replicate = None
    make: Callable[[Tensor, Tensor], Any] = OuterLayer
    cache.layers = [make(keys, values) for keys, values in layers]
    return cache
