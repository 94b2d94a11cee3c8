"""image-feature-extraction: a picture's last hidden states, made one vector, and compared by the cosine.

The vector is the first state where the model has one of the whole picture (ViT's and DeiT's CLS), else their mean, as
Swin, ConvNeXt and ResNet pool. A pooler behind it is not compared: its numbers are of the states.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from exporter.form import IMAGE_FEATURES as NAME
from exporter.measure.quality import Passages, Pool, Progress
from exporter.runner import Floats, Runner
from exporter.tasks.feature_extraction import cosines
from exporter.tasks.image_classification import pictures_of
from exporter.tasks.task import Task
from exporter.tasks.vectors import answering, comparing, each

_WHOLE = (1, 2)  # ViT's CLS; DeiT's, and its teacher's token


def _read(processor: Any, pictures: str, tokens: int, window: int, stride: int) -> Passages:
    return pictures_of(NAME, processor, pictures)


def _vectors(runner: Runner, passages: Passages, progress: Progress, pool: Pool) -> Floats:
    """Each picture's vector [pictures, H]."""
    return np.stack([vector_of(out[0]) for _, out in each(runner, passages, progress)])


def vector_of(states: Floats) -> Floats:
    """Of [P, H]. A picture is cut into a square of patches: one state more, or two, are of the whole picture."""
    squares = {(side * side + more) for side in range(1, len(states)) for more in _WHOLE}
    vector: Floats = states[0] if len(states) in squares else states.mean(axis=0)
    return vector


IMAGE_FEATURE_EXTRACTION = Task(
    NAME, 3, _read, answering(_vectors), comparing(_vectors, cosines), {"cosine": 1.0}, ("picture.png",)
)
