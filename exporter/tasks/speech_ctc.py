"""automatic-speech-recognition-ctc: of each frame of a sound a character, or none (wav2vec2, HuBERT and their kin).

Connectionist temporal classification (Graves et al. 2006): what a sound's frames say most likely is its transcript, the
repeats of a character and the blanks between left out. KL of the frames' probabilities, and how often a frame's
likeliest character is the reference's; transcripts and their word errors stand in measure/transcripts.py, for a
tokenizer writes them. One sound at a time: padding would change what a group normalization makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from exporter.checkpoint.extractor import all_extracted, rate_of
from exporter.errors import BuildError
from exporter.form import SPEECH_CTC
from exporter.measure.classification import compare_answers
from exporter.measure.perplexity import Forms
from exporter.measure.quality import Answers, Passages, Pool, Progress, Reference
from exporter.runner import Floats, Ids, Runner
from exporter.tasks.task import Compared, Task
from exporter.tasks.vectors import answering, each
from exporter.types import SINGLE_LABEL

OF_ITSELF: Mapping[str, float] = {"kl": 0.0, "top1": 1.0, "transcripts": 1.0}


def _read(extractor: Any, sounds: str, tokens: int, window: int, stride: int) -> Passages:
    """The sounds of a list (checkpoint/sounds.py), one after another; a stride is a second."""
    made = all_extracted(extractor, sounds)
    offsets = np.cumsum([0, *map(len, made)]).astype(np.int64)
    return Passages(SPEECH_CTC, np.concatenate(made), offsets, max(map(len, made)), rate_of(extractor))


def _frames(runner: Runner, passages: Passages, progress: Progress) -> tuple[Floats, Ids]:
    """The answers [S, V] to the frames of all sounds, and where those of each begin [sounds + 1]."""
    made = [out for _, out in each(runner, passages, progress)]
    return np.concatenate(made), np.cumsum([0, *map(len, made)]).astype(np.int64)


def _answer(runner: Runner, passages: Passages, progress: Progress, pool: Pool) -> Answers:
    frames, bounds = _frames(runner, passages, progress)
    return replace(answering(lambda *asked: frames)(runner, passages, progress, pool), bounds=bounds)


def _compare(runner: Runner, reference: Reference, progress: Progress, pool: Pool, forms: Forms | None) -> Compared:
    frames, bounds = _frames(runner, reference.passages, progress)
    expected = reference.answers
    if expected.bounds is None or not np.array_equal(bounds, expected.bounds):
        told = "none" if expected.bounds is None else str(expected.bounds[-1])
        raise BuildError(
            f"it answers {bounds[-1]} frames of the sounds, and the reference {told}: their lengths differ"
        )
    return compare_answers(SINGLE_LABEL, expected.vectors, frames), frames


SPEECH_RECOGNITION_CTC = Task(SPEECH_CTC, 16_000, _read, _answer, _compare, OF_ITSELF, ("sound.wav",))
