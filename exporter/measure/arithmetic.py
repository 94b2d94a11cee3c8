"""What every task's figures are computed with: log-probabilities, and means with their standard errors."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from exporter.report.result import Figure
from exporter.runner import Floats

Doubles = NDArray[np.float64]


def log_softmax(logits: Floats) -> Floats:
    """Over the last axis; sums in float64, so that a large vocabulary loses nothing."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    total = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
    result: Floats = shifted - np.log(total).astype(np.float32)
    return result


def mean(values: Doubles) -> tuple[float, float]:
    """Mean and its standard error over tokens (or passages)."""
    if len(values) < 2:
        return float(values.mean()), 0.0
    return float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))


def divergence(kl: Doubles) -> Figure:
    value, se = mean(kl)
    return Figure(max(value, 0.0), se)  # float32 rounding can push the divergence of equal models just below zero
