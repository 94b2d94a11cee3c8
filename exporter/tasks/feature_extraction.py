"""feature-extraction: an encoder's last hidden states, pooled to a vector for each passage.

Compared by the cosine, which is what such vectors are used by.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from exporter.form import FEATURES
from exporter.measure.arithmetic import mean
from exporter.measure.quality import Passages, Pool, Progress
from exporter.report.result import Figure
from exporter.runner import Floats, Runner
from exporter.tasks.task import Task, passages_of, whole_windows
from exporter.tasks.vectors import answering, comparing, each


def _read(tokenizer: Any, text: str, tokens: int, window: int, stride: int) -> Passages:
    return passages_of(FEATURES, whole_windows(tokenizer, text, tokens, window), window, stride)


def _vectors(runner: Runner, passages: Passages, progress: Progress, pool: Pool) -> Floats:
    """Each passage's vector [passages, H]."""
    return np.stack([pool(out) for _, out in each(runner, passages, progress)])


def cosines(passages: Passages, expected: Floats, got: Floats) -> dict[str, Figure]:
    """Of [passages, H]."""
    a, b = expected.astype(np.float64), got.astype(np.float64)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosine, se = mean((a * b).sum(-1) / np.maximum(lengths, 1e-30))
    return {"cosine": Figure(min(cosine, 1.0), se)}


FEATURE_EXTRACTION = Task(
    FEATURES, 128, _read, answering(_vectors), comparing(_vectors, cosines), {"cosine": 1.0},
    ("A sentence.", "Another one."),
)  # fmt: skip
