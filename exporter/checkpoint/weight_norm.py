"""Weights that are a direction and a length while they are trained: made one tensor, as a graph needs it."""

from __future__ import annotations

from typing import Any


def merge_weight_norms(model: Any) -> None:
    """Writes each weight-normalized weight out in the model, g * v / |v| (Salimans and Kingma 2016), in place."""
    from torch.nn.utils import parametrize

    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
