"""The attention that is traced: transformers lets its attention function be chosen, and this one's trace converts.

transformers' own repeats keys with sizes that it multiplies while it is traced; here none is computed, and a converter
finds one operator, or a few plain ones.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# Among transformers' implementations.
PLAIN, FUSED, GROUPED, LATE = "exporter_plain", "exporter_fused", "exporter_grouped", "exporter_late"
# What neither form has a place for, such as gpt-oss' sinks: such a model's own code is traced.
_BEYOND = ("s_aux", "position_bias")


def use_attention(model: Any, way: str) -> None:
    """Lets a model attend PLAIN, in single operators; FUSED, by torch's one operator, which engines have too; or
    GROUPED, where sizes are numbers: keys that heads share are read once, not repeated; or LATE, scaling scores instead
    of queries, whose scale a converter would multiply into a layer's weights. Others keep their own way.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    for name, function in ((PLAIN, _plain), (FUSED, _fused), (GROUPED, _grouped), (LATE, _late)):
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, eager_mask)
    supported = getattr(model, "_supports_attention_backend", False)
    model.set_attn_implementation(way if supported else "eager")


def _fused(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """[batch, heads, tokens, head size] each, out [batch, tokens, heads, size]; softmax(q kᵀ scale + mask) v."""
    import torch

    hides = mask is None and getattr(module, "is_causal", True)  # a picture's patches see one another
    if others.get("softcap") is not None or hides or _beyond(others):
        return _plain(module, query, key, value, mask, scaling, **others)
    size = int(query.shape[-1])
    # The operator scales by itself, with the root of the head size; MIL's has no place for another number.
    rest = 1.0 if scaling is None else scaling * size**0.5
    query = query if abs(rest - 1) < 1e-6 else query * rest
    key, value = _shared(module, key), _shared(module, value)
    answer = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return answer.transpose(1, 2).contiguous(), None


def _plain(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """The same in single operators."""
    if _beyond(others):
        eager = sys.modules[type(module).__module__].eager_attention_forward
        answer: Tensor = eager(module, query, key, value, mask, scaling=scaling, **others)[0]
        return answer, None
    scale = int(query.shape[-1]) ** -0.5 if scaling is None else scaling
    # The query is scaled, not the product: float16 holds that one longer.
    scores = (query * scale) @ _shared(module, key).transpose(-1, -2)
    if (cap := others.get("softcap")) is not None:
        scores = (scores / cap).tanh() * cap
    if mask is not None:
        scores = scores + mask
    return (scores.softmax(-1) @ _shared(module, value)).transpose(1, 2).contiguous(), None


def _late(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """As _plain, of scores that are scaled themselves."""
    scale = int(query.shape[-1]) ** -0.5 if scaling is None else scaling
    if others.get("softcap") is not None or _beyond(others):
        return _plain(module, query, key, value, mask, scaling, **others)
    scores = query @ _shared(module, key).transpose(-1, -2) * scale
    if mask is not None:
        scores = scores + mask
    return (scores.softmax(-1) @ _shared(module, value)).transpose(1, 2).contiguous(), None


def _grouped(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """As _plain, the queries of the heads that share a key as more of its rows: a cache is not copied for each."""
    groups = getattr(module, "num_key_value_groups", 1)
    if groups == 1 or _beyond(others):
        return _plain(module, query, key, value, mask, scaling, **others)
    batch, heads, tokens, size = (int(one) for one in query.shape)
    shared = heads // groups
    scale = size**-0.5 if scaling is None else scaling
    rows = (query * scale).reshape(batch, shared, groups * tokens, size)
    scores = (rows @ key.transpose(-1, -2)).reshape(batch, shared, groups, tokens, -1)
    if (cap := others.get("softcap")) is not None:
        scores = (scores / cap).tanh() * cap
    if mask is not None:
        scores = scores + mask[:, :, None]
    answer = scores.softmax(-1).reshape(batch, shared, groups * tokens, -1) @ value
    return answer.reshape(batch, heads, tokens, -1).transpose(1, 2).contiguous(), None


def _beyond(others: dict[str, Any]) -> bool:
    return any(others.get(name) is not None for name in _BEYOND)


def _shared(module: Any, states: Tensor) -> Tensor:
    """Each head for as many of the query's as there are: [batch, heads, tokens, size]."""
    groups = getattr(module, "num_key_value_groups", 1)
    if groups == 1:
        return states
    heads, size = int(states.shape[1]) * groups, int(states.shape[3])
    return states.unsqueeze(2).repeat(1, 1, groups, 1, 1).reshape(states.shape[0], heads, -1, size)
