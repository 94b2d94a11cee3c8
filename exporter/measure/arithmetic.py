"""What every task's figures are computed with: log-probabilities, and means with their standard errors."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from exporter.report.result import Figure
from exporter.runner import Floats

TOP_K = 256
Doubles = NDArray[np.float64]
LARGEST = 700  # nats: beyond them a perplexity is no float64
Top = tuple[NDArray[np.int32], Floats, Floats]  # ids and their log-probabilities [T, k], and the rest's [T]


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


def exponential(value: float, se: float) -> Figure:
    """exp of a mean, and its standard error to first order."""
    ratio = math.exp(value) if value < LARGEST else math.inf
    return Figure(ratio, ratio * se)


def divergence(kl: Doubles) -> Figure:
    value, se = mean(kl)
    return Figure(max(value, 0.0), se)  # float32 rounding can push the divergence of equal models just below zero


def top_of(logp: Floats) -> Top:
    """The TOP_K most likely tokens of log-probabilities [T, V], the likeliest first, and what they leave over."""
    k = min(TOP_K, logp.shape[-1])
    best = np.argpartition(logp, -k, axis=-1)[:, -k:]
    best_logp = np.take_along_axis(logp, best, -1)
    order = np.argsort(-best_logp, axis=-1, kind="stable")
    best, best_logp = np.take_along_axis(best, order, -1), np.take_along_axis(best_logp, order, -1)
    return best.astype(np.int32), best_logp, _rest(logp, best_logp)


def divergence_of(top: Top, logp: Floats) -> Doubles:
    """KL(top || logp) [T] in nats, of log-probabilities [T, V]."""
    ids, p, p_rest = top
    q = np.take_along_axis(logp, ids.astype(np.int64), -1)
    kl: Doubles = (np.exp(p) * (p - q)).sum(-1) + np.exp(p_rest) * (p_rest - _rest(logp, q))
    return kl


def _rest(logp: Floats, chosen: Floats) -> Floats:
    """log of the probability that the chosen columns leave over; the same float32 terms go into both float64 sums."""
    whole = np.exp(logp).sum(axis=-1, dtype=np.float64)
    left = np.maximum(whole - np.exp(chosen).sum(axis=-1, dtype=np.float64), 1e-30)
    result: Floats = np.log(left).astype(np.float32)
    return result
