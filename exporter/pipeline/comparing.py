"""What a row's quality is made of: an artifact's answers beside the reference's, and beside the labels of its texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from exporter.measure import quality
from exporter.measure.embedding import EMBEDDING, Embedding
from exporter.measure.labels import LABELS, Labels, compare_labels
from exporter.report.result import Figure
from exporter.runner import Runner
from exporter.types import GENERATION


def compare(
    runner: Runner, reference: quality.Reference, folder: Path, progress: Callable[[int, int], None]
) -> dict[str, Figure]:
    """Every figure that this task has, and those of labels where the reference's `folder` has any."""
    passages, expected = reference.passages, reference.answers.vectors
    if passages.task == GENERATION:
        return quality.compare(runner, reference, progress)
    got = quality.passage_vectors(runner, passages, progress, pool_of(folder))
    figures = quality.compare_vectors(passages, expected, got)
    if (folder / LABELS).is_file():
        figures |= compare_labels(Labels.load(folder / LABELS), expected, got)
    return figures


def pool_of(folder: Path) -> quality.Pool:
    """How a text's vector is made: by the modules that the reference was measured with, else the mean."""
    return Embedding.load(folder / EMBEDDING).vector if (folder / EMBEDDING).is_file() else quality.mean_pooled
