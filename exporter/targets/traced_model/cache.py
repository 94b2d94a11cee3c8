"""A KV cache as two buffers that a program updates in place: what an engine keeps between calls as its state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exporter.errors import BuildError

if TYPE_CHECKING:
    from torch import Tensor

# Layers whose cache is keys and values, or that have none; of model types that name none, those with a state.
_ATTENTIONS = {
    "attention", "full_attention", "sliding_attention", "chunked_attention", "moe", "mlp", "dense", "sparse",
}  # fmt: skip
_RECURRENT = {"mamba", "mamba2", "falcon_mamba", "falcon_h1", "rwkv", "xlstm", "jamba", "zamba", "zamba2"}
Shapes = list[tuple[tuple[int, int], tuple[int, int]]]  # of each layer: (heads, head size) of its keys, of its values


def answer_shapes(model: Any) -> tuple[int, Shapes]:
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


def refused_cache(config: Mapping[str, Any]) -> str | None:
    """Why a decoder with this config.json has a cache that no graph here takes; None where it is keys and values.

    What a configuration does not tell, answer_shapes finds in the model.
    """
    told: Mapping[str, Any] = config.get("text_config") or config
    kinds = next((told[name] for name in ("layer_types", "layers_block_type", "block_types") if told.get(name)), ())
    odd = sorted(set(kinds) - _ATTENTIONS)
    if not odd and told.get("model_type") not in _RECURRENT:
        return None
    kind = f"layers: {', '.join(odd)}" if odd else f"model type: {told['model_type']}"
    return f"its cache holds more than keys and values ({kind}), which no graph here takes yet; try gguf"


@dataclass(frozen=True)
class StateShape:
    """[layers, 1, heads, length, head size], the same of keys and of values."""

    layers: int
    heads: int
    length: int
    size: int

    @property
    def dimensions(self) -> tuple[int, int, int, int, int]:
        return self.layers, 1, self.heads, self.length, self.size


def state_shape(name: str, layers: Shapes, length: int) -> StateShape:
    """The buffers for `length` tokens. Raises BuildError where layers differ, which one buffer cannot hold."""
    kinds = {part for layer in layers for part in layer}
    if len(kinds) > 1:
        told = ", ".join(f"{heads} heads of {size}" for heads, size in sorted(kinds))
        raise BuildError(f"{name} cannot be exported with its cache as a state: its layers differ ({told})")
    [(heads, size)] = kinds
    return StateShape(len(layers), heads, length, size)


def buffered_cache(keys: Tensor, values: Tensor, past: int) -> Any:
    """A transformers Cache over buffers of a StateShape that hold `past` tokens: new ones are written behind them.

    Every layer keeps its whole past, one with a sliding window too: its mask alone hides what is too old.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    class BufferedLayer(DynamicLayer):
        def __init__(self, index: int) -> None:
            super().__init__()  # type: ignore[no-untyped-call]  # transformers leaves it so
            self.index = index

        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            end = past + key_states.shape[-2]
            keys[self.index, :, :, past:end] = key_states
            values[self.index, :, :, past:end] = value_states
            return keys[self.index, :, :, :end], values[self.index, :, :, :end]

        def get_seq_length(self) -> int:
            return past

    cache = DynamicCache()
    cache.layer_class_to_replicate = None
    make: Callable[[int], Any] = BufferedLayer
    cache.layers = [make(index) for index in range(keys.shape[0])]
    return cache
