"""The smallest weights become 0: L1 of torch.nn.utils.prune, made permanent (Han et al. 2015, arXiv 1506.02626).

torch.nn.utils.prune chooses the same weights. It copies those of all layers into one vector and keeps each weight
beside its mask; GPT-2's layers, stored the other way round, have no 2:4 along their inputs there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from exporter.stages.prune.masks import keep_2_of_4, keep_largest, share_of

if TYPE_CHECKING:
    from torch import Tensor


def prune_globally(weights: Mapping[str, Tensor], share: float) -> list[str]:
    """Of float32 weights, all together, exactly share_of(share, how many they are) become 0, in place; all layers.

    Layers of small weights lose more than others. Weights are finite.
    """
    every = list(weights.values())
    dropped = share_of(share, sum(weight.numel() for weight in every))
    for weight, keep in zip(every, keep_largest(every, dropped), strict=True):
        weight.masked_fill_(~keep, 0)
    return list(weights)


def prune_each(weights: Mapping[str, Tensor], share: float | None) -> list[str]:
    """Of each float32 weight [N, K] exactly share_of(share, N * K) become 0, or None: two of four; all layers."""
    for weight in weights.values():
        if share is None:
            keep = keep_2_of_4(weight.abs())
        else:
            [keep] = keep_largest([weight], share_of(share, weight.numel()))
        weight.masked_fill_(~keep, 0)
    return list(weights)
