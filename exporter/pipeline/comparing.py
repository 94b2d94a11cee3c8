"""What is told of an artifact's answers: figures beside the reference's and beside labels, and samples to look at."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exporter.form import FORMS, IMAGE_FEATURES, IMAGES, ZERO_SHOT
from exporter.measure import quality
from exporter.measure.embedding import EMBEDDING, Embedding
from exporter.measure.labels import LABELS, PAIRS, Labels, truth
from exporter.measure.perplexity import PERPLEXITY, Forms
from exporter.measure.samples import SAMPLES, changed_labels, changed_neighbours, changed_order, continuations, texts_of
from exporter.measure.scored import compare_labels
from exporter.pipeline.sampling import decoders
from exporter.pipeline.sounds import heard
from exporter.pipeline.speech import heard_by
from exporter.report.result import Figure
from exporter.runner import Floats, Runner
from exporter.tasks import known as tasks
from exporter.types import CLASSIFICATION, FEATURES, REGRESSION, Checkpoint


def compare(
    runner: Runner,
    reference: quality.Reference,
    folder: Path,
    checkpoint: Checkpoint,
    progress: Callable[[int, int], None],
) -> tuple[dict[str, Figure], dict[str, Any] | None]:
    """Every figure that this task has, those of labels where the reference's `folder` has any; and samples.

    Samples are None where the reference is an older exporter's, which stored none.
    """
    passages, expected = reference.passages, reference.answers.vectors
    told = json.loads((folder / SAMPLES).read_text(encoding="utf-8")) if (folder / SAMPLES).is_file() else None
    forms = Forms.load(folder / PERPLEXITY) if (folder / PERPLEXITY).is_file() else None
    figures, got = tasks.compare(runner, reference, progress, pool_of(folder), forms)
    if told is not None and FORMS[passages.task].inputs == "spectrogram":
        said, samples = heard_by(runner, folder, checkpoint, reference, told, progress)
        return figures | said, samples
    if FORMS[passages.task].cached:
        return figures, told and continuations(runner, told, decoders(folder, checkpoint)[0])
    if got is None:
        return figures, None
    if told is not None and "transcripts" in told:
        said, samples = heard(folder, checkpoint, reference, got, told)
        return figures | said, samples
    labels = Labels.load(folder / LABELS) if (folder / LABELS).is_file() else None
    if labels is not None:
        figures |= compare_labels(labels, expected, got)
    if told is None or passages.task not in (FEATURES, CLASSIFICATION, IMAGES, IMAGE_FEATURES, ZERO_SHOT):
        return figures, None
    texts = _texts(told, passages, folder, checkpoint)
    return figures, _changed(passages, expected, got, told["names"], labels, texts)


def _texts(
    told: dict[str, Any], passages: quality.Passages, folder: Path, checkpoint: Checkpoint
) -> Callable[[int], str]:
    """What a sample is called by its number: a text, or a picture's name."""
    if (pictures := told.get("pictures")) is not None:
        return lambda one: str(pictures[one])
    return texts_of(passages, decoders(folder, checkpoint)[1])


def _changed(
    passages: quality.Passages,
    expected: Floats,
    got: Floats,
    names: list[str],
    labels: Labels | None,
    texts: Callable[[int], str],
) -> dict[str, Any]:
    if not FORMS[passages.task].classifier:
        return changed_neighbours(expected, got, texts, labels is not None and labels.kind == PAIRS)
    if passages.problem_type == REGRESSION or expected.shape[-1] == 1:
        return changed_order(expected[:, 0].astype("float64"), got[:, 0].astype("float64"), texts)
    right = None if labels is None else truth(labels, expected.shape[-1])
    return changed_labels(passages.problem_type, expected, got, names, texts, right)


def pool_of(folder: Path) -> quality.Pool:
    """How a text's vector is made: by the modules that the reference was measured with, else the mean."""
    return Embedding.load(folder / EMBEDDING).vector if (folder / EMBEDDING).is_file() else quality.mean_pooled
