"""Masks that whoever calls a traced decoder gives it: which ones it takes, and what is in them.

They are added to the attention's scores: 0 where a token is seen, HIDDEN where not. -inf would become NaN in float16
engines where a row is hidden whole, and HIDDEN is a number of float16.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from exporter.errors import BuildError
from exporter.runner import Floats

HIDDEN = -30000.0
CAUSAL, SLIDING = "causal_mask", "sliding_mask"
_TYPES = {"full_attention": CAUSAL, "sliding_attention": SLIDING}  # of layers, in transformers' words


def mask(new: int, past: int = 0, window: int | None = None) -> Floats:
    """float32 [1, 1, new, past + new]: token i sees those up to itself, of a window only the last `window`."""
    at, seen = np.arange(past, past + new)[:, None], np.arange(past + new)[None]
    hidden = seen > at
    if window is not None:
        hidden |= seen <= at - window
    return np.where(hidden, np.float32(HIDDEN), np.float32(0))[None, None]


def masks_of(model: Any) -> tuple[tuple[str, ...], int | None]:
    """The masks that a decoder's layers need, and its window. Raises BuildError for a kind that is neither.

    A window without a list of layer types is every layer's.
    """
    config = model.config.get_text_config()
    window: int | None = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    kinds = list(types or ["full_attention" if window is None else "sliding_attention"])
    strange = sorted(set(kinds) - set(_TYPES))
    if strange:
        raise BuildError(f"{type(model).__name__} cannot be exported: it has layers of {', '.join(strange)}")
    names = tuple(name for name in (CAUSAL, SLIDING) if name in {_TYPES[kind] for kind in kinds})
    return names, window if SLIDING in names else None


def as_argument(masks: dict[str, Any]) -> Any:
    """The attention_mask that transformers takes these for: one tensor, or where layers differ one for each type."""
    if len(masks) == 1:
        [only] = masks.values()
        return only
    return {kind: masks[name] for kind, name in _TYPES.items()}
