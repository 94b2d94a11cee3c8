"""text-classification: one answer for a whole text, of one label, several, or a number (measure/classification.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from exporter.errors import JobError
from exporter.form import CLASSIFICATION
from exporter.job import MIN_TEXTS
from exporter.measure.classification import compare_answers
from exporter.measure.quality import Passages, Pool, Progress
from exporter.report.result import Figure
from exporter.runner import Floats, Ids, Runner
from exporter.tasks.task import Task, passages_of
from exporter.tasks.vectors import answering, comparing, each
from exporter.types import MULTI_LABEL, REGRESSION, SINGLE_LABEL

OF_ITSELF: Mapping[str, Mapping[str, float]] = {
    SINGLE_LABEL: {"kl": 0.0, "top1": 1.0},
    MULTI_LABEL: {"kl": 0.0, "top1": 1.0},
    REGRESSION: {"regression_error": 0.0, "pearson": 1.0, "spearman": 1.0},
}


def _read(tokenizer: Any, text: str, tokens: int, window: int, stride: int) -> Passages:
    """Whole short texts: each line is one, cut at the window as its users' are, until there are enough `tokens`.

    Pieces of a long text would all be alike to a classifier. Raises JobError.
    """
    return passages_of(CLASSIFICATION, short_texts(tokenizer, text, tokens, window), window, stride)


def short_texts(tokenizer: Any, text: str, tokens: int, window: int) -> list[Ids]:
    """The ids of a text's lines, special tokens included; none twice, and none without a letter or a digit."""
    lines = dict.fromkeys(line.strip() for line in text.splitlines())
    pieces: list[Ids] = []
    total = 0
    for line in (line for line in lines if any(map(str.isalnum, line))):
        if total >= tokens:
            break
        piece = np.array(tokenizer(line, truncation=True, max_length=window)["input_ids"], np.int64)
        pieces.append(piece)
        total += len(piece)
    if len(pieces) < MIN_TEXTS:
        raise JobError(
            f"the text has {len(pieces)} different lines within {tokens} tokens, and a classifier is measured on at "
            f"least {MIN_TEXTS}: give --eval-text FILE with a text of its own on each line, or more --eval-tokens"
        )
    return pieces


def _logits(runner: Runner, passages: Passages, progress: Progress, pool: Pool) -> Floats:
    """[passages, C]."""
    return np.stack([out[0] for _, out in each(runner, passages, progress)])


def _figures(passages: Passages, expected: Floats, got: Floats) -> dict[str, Figure]:
    return compare_answers(passages.problem_type, expected, got)


TEXT_CLASSIFICATION = Task(
    CLASSIFICATION, 128, _read, answering(_logits), comparing(_logits, _figures), OF_ITSELF[SINGLE_LABEL],
    ("A sentence.",),
)  # fmt: skip
