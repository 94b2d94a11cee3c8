"""What a package is called with: ids, positions and masks, by the names of its inputs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from exporter.runner import Ids
from exporter.targets.traced_model.masks import CAUSAL, SLIDING, mask


def decoder_feeds(inputs: Collection[str], ids: Ids, past: int, window: int | None) -> dict[str, Any]:
    """For [T] new ids behind `past` cached ones. `window`: of the sliding mask, where there is one."""
    new = len(ids)
    known: dict[str, Any] = {
        "input_ids": ids[None].astype(np.int32),
        "position_ids": np.arange(past, past + new, dtype=np.int32)[None],
        CAUSAL: mask(new, past),
        SLIDING: mask(new, past, window),
    }
    return {name: known[name] for name in inputs}


def encoder_feeds(inputs: Collection[str], ids: Ids, mask: Ids, segments: Ids | None = None) -> dict[str, Any]:
    """For [B, T] ids and mask, and of two texts [B, T] segments."""
    known = {"input_ids": ids, "attention_mask": mask}
    known["token_type_ids"] = np.zeros_like(ids) if segments is None else segments
    return {name: np.ascontiguousarray(known[name], np.int32) for name in inputs}
