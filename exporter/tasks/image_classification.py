"""image-classification: a class for a picture. KL of the classes' probabilities, and how often the choice is the same.

Problem types are those of text classification: several labels at once, or a number, are compared as they are there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from exporter.checkpoint.pictures import read
from exporter.checkpoint.processor import pixels
from exporter.form import IMAGES
from exporter.measure.classification import compare_answers
from exporter.measure.quality import Passages, Pool, Progress
from exporter.report.result import Figure
from exporter.runner import Floats, Runner
from exporter.tasks.task import Task
from exporter.tasks.vectors import answering, comparing, each
from exporter.types import SINGLE_LABEL


def pictures_of(task: str, processor: Any, pictures: str) -> Passages:
    """The pictures of a list (checkpoint/pictures.py), one after another along their channels."""
    made = pixels(processor, read(pictures))
    count, channels, *_ = made.shape
    offsets = (np.arange(count + 1) * channels).astype(np.int64)
    return Passages(task, made.reshape(-1, *made.shape[2:]), offsets, channels, channels)


def _read(processor: Any, pictures: str, tokens: int, window: int, stride: int) -> Passages:
    return pictures_of(IMAGES, processor, pictures)


def _logits(runner: Runner, passages: Passages, progress: Progress, pool: Pool) -> Floats:
    """[pictures, C]."""
    return np.stack([out[0] for _, out in each(runner, passages, progress)])


def _figures(passages: Passages, expected: Floats, got: Floats) -> dict[str, Figure]:
    return compare_answers(passages.problem_type or SINGLE_LABEL, expected, got)


IMAGE_CLASSIFICATION = Task(
    IMAGES, 3, _read, answering(_logits), comparing(_logits, _figures), {"kl": 0.0, "top1": 1.0}, ("picture.png",)
)
