"""What models decide in Python by a text's length, as tensors: both sides are in the trace, and its inputs choose.

- Ropes whose frequencies depend on the length (transformers' `dynamic_rope_update`): dynamic NTK and longrope's two
  sets of factors. transformers keeps the grown frequencies of a dynamic NTK until it reads a shorter text: the graph
  answers as a model that has read nothing else, which is also what a cache that grows with the text comes to.
- Phi-3.5-MoE, whose rope has one set of factors and two scales.
- DeBERTa, whose relative positions reach as far as the text is long.
- Falcon's ALiBi, which is computed in bfloat16: ONNX Runtime multiplies none on the CPU, and torch's exporter mistakes
  the type. The same numbers, in float32 and rounded.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

_MODELS = "transformers.models."
_UPDATE = "dynamic_rope_update.<locals>.wrapper"


@contextmanager
def chosen_by_tensors(model: Any) -> Iterator[None]:
    """While it lasts, the model's choices by length are tensors'. It answers as before, at any length.

    A model that remembers what it decided, such as BigBird, forgets it at the end.
    """
    with ExitStack() as stack:
        for module in list(model.modules()):
            stack.callback(_restore, module, *_attributes(module))
            forward = _rope(module)
            if forward is not None:
                module.forward = forward
        for name in sorted({type(module).__module__ for module in model.modules()}):
            for function, make in _FUNCTIONS.get(name.removeprefix(_MODELS), {}).items():
                stack.callback(setattr, sys.modules[name], function, getattr(sys.modules[name], function))
                setattr(sys.modules[name], function, make(getattr(sys.modules[name], function)))
        yield


_TABLES = ("_parameters", "_buffers", "_modules")


def _attributes(module: Any) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    return dict(vars(module)), {name: dict(vars(module)[name]) for name in _TABLES}


def _restore(module: Any, attributes: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]]) -> None:
    """A module's attributes as they were: the same tensors and modules under the same names."""
    vars(module).clear()
    vars(module).update(attributes)
    for name, table in tables.items():
        vars(module)[name].clear()
        vars(module)[name].update(table)


class _Seen:
    """A rotary module as its forward sees it: with other frequencies."""

    def __init__(self, module: Any, **own: Any) -> None:
        self._module = module
        self.__dict__.update(own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _rope(module: Any) -> Callable[..., Any] | None:
    """A rotary module's forward that computes its frequencies of the length; None where they do not depend on it."""
    if type(module).__name__ == "PhimoeRotaryEmbedding" and module.rope_type != "default":
        return _two_scales(module)
    kinds = getattr(module, "rope_type", None)
    by_layer: Mapping[str | None, Any] = kinds if isinstance(kinds, Mapping) else {None: kinds}
    changing = {layer: kind for layer, kind in by_layer.items() if kind == "longrope" or "dynamic" in str(kind)}
    if not changing or not _is_updated(type(module).forward):
        return None
    choose = {layer: _frequencies(module, layer, kind) for layer, kind in changing.items()}
    original = inspect.unwrap(type(module).forward)

    def forward(x: Any, position_ids: Any, layer_type: str | None = None) -> Any:
        seen = module
        if layer_type in choose:
            own = {f"{_prefix(layer_type)}inv_freq": choose[layer_type](_length(position_ids))}
            seen = _Seen(module, **own)
        return original(seen, x, position_ids, **({} if layer_type is None else {"layer_type": layer_type}))

    return forward


def _is_updated(forward: Any) -> bool:
    """Whether transformers updates the frequencies before a forward, which is decorated so."""
    while forward is not None:
        if getattr(getattr(forward, "__code__", None), "co_qualname", "") == _UPDATE:
            return True
        forward = getattr(forward, "__wrapped__", None)
    return False


def _prefix(layer: str | None) -> str:
    return "" if layer is None else f"{layer}_"


def _length(position_ids: Any) -> Any:
    """The longest text's tokens, as transformers counts them: int64 []."""
    return position_ids.max() + 1


def _frequencies(module: Any, layer: str | None, kind: str) -> Callable[[Any], Any]:
    """Of a length int64 [], the inverse frequencies [pairs] that a model has which has read no other text."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    init = ROPE_INIT_FUNCTIONS[kind]
    short = getattr(module, f"{_prefix(layer)}original_inv_freq")
    parameters = module.config.rope_parameters
    if kind == "longrope":
        limit = (parameters if layer is None else parameters[layer])["original_max_position_embeddings"]
        long, _ = init(module.config, short.device, seq_len=limit + 1, layer_type=layer)
        return lambda length: torch.where(length > limit, long, short)
    limit = module.original_max_seq_len

    def grown(length: Any) -> Any:
        long, _ = init(module.config, short.device, seq_len=length, layer_type=layer)
        return torch.where(length > limit, long, short)

    return grown


def _two_scales(module: Any) -> Callable[..., Any]:
    """Phi-3.5-MoE's forward."""
    import torch

    parameters = module.config.rope_parameters
    limit = parameters["original_max_position_embeddings"]
    short, long = (torch.tensor(parameters[f"{which}_mscale"], dtype=torch.float32) for which in ("short", "long"))
    frequencies, _ = module.rope_init_fn(module.config)

    def forward(x: Any, position_ids: Any = None) -> Any:
        scale = torch.where(_length(position_ids) > limit, long, short)
        angles = position_ids[..., None].float() * frequencies.to(x.device)
        both = torch.cat((angles, angles), dim=-1)
        return (both.cos() * scale).to(x.dtype), (both.sin() * scale).to(x.dtype)

    return forward


def _falcon(original: Callable[..., Any]) -> Callable[..., Any]:
    """ALiBi of a mask [batch, total] as [batch * heads, 1, total]: slope * position, rounded as bfloat16 is."""
    import torch

    def alibi(attention_mask: Any, num_heads: int, dtype: Any) -> Any:
        slopes = original(torch.ones(1, 2, dtype=torch.int64), num_heads, torch.float32)[:, 0, 1]  # of position 1
        positions = (attention_mask.cumsum(dim=-1) - 1) * attention_mask
        products = slopes[:, None] * positions[:, None, :].float().bfloat16().float()
        whole = products.bfloat16().float().reshape(-1, 1, attention_mask.shape[-1])
        return whole.to(dtype)

    return alibi


def _deberta(_: Callable[..., Any]) -> Callable[..., Any]:
    """How many relative positions a text of queries and keys [..., tokens, size] has: int64 []."""
    import torch

    def span(query: Any, key: Any, most: int) -> Any:
        tokens = torch.stack([torch._shape_as_tensor(one)[-2] for one in (query, key)])
        return tokens.max().clamp(max=most)

    return span


# By a model's module in transformers: a function of it, and what makes another one of it.
_FUNCTIONS: Mapping[str, Mapping[str, Callable[[Any], Any]]] = {
    "falcon.modeling_falcon": {"build_alibi_tensor": _falcon},
    "deberta.modeling_deberta": {"compute_attention_span": _deberta},
}
