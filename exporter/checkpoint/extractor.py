"""A checkpoint's feature extractor: from a sound to what its model is fed, its samples or their spectrogram."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from exporter.checkpoint.sounds import read
from exporter.errors import JobError, one_line
from exporter.runner import Floats
from exporter.types import PROCESSOR_FILES


def read_extractor(folder: Path, trust: bool) -> Any:
    """The feature extractor of a folder. Raises JobError."""
    from transformers import AutoFeatureExtractor

    if not any((folder / name).is_file() for name in PROCESSOR_FILES):
        raise JobError(
            f"{folder} has no {PROCESSOR_FILES[0]}: how a sound becomes its model's input is not known; copy it there "
            "from the model it is of"
        )
    try:
        load: Any = AutoFeatureExtractor.from_pretrained  # which transformers leaves untyped
        return load(folder, trust_remote_code=trust)
    except (ValueError, KeyError, OSError, ImportError, TypeError) as error:
        raise JobError(f"the feature extractor of {folder} cannot be loaded: {one_line(error)}") from error


def rate_of(extractor: Any) -> int:
    """Samples a second that it, and its model, takes."""
    return int(extractor.sampling_rate)


def all_extracted(extractor: Any, sounds: str) -> list[Floats]:
    """What the model is fed of each sound of a list (exporter.checkpoint.sounds). Raises JobError."""
    rate = rate_of(extractor)
    return [extracted(extractor, sound, rate) for sound in read(sounds, rate)]


def extracted(extractor: Any, sound: Floats, rate: int) -> Floats:
    """What the model is fed of a sound [T] at `rate`: its samples [T], or its spectrogram [mel, frames].

    One sound at a time, without padding of its own to others. Raises JobError for a rate that is not its own.
    """
    try:
        made = extractor(sound, sampling_rate=rate, return_tensors="np")
    except ValueError as error:
        raise JobError(f"its feature extractor takes no sound: {' '.join(str(error).split())[:300]}") from error
    names = extractor.model_input_names
    result: Floats = np.asarray(made[names[0]][0], np.float32)
    return result
