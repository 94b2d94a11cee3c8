"""automatic-speech-recognition by an encoder-decoder: a spectrogram is read, and a transcript made of it.

Measured as text2text generation is, on the tokens of a transcript given its sound (teacher forcing): of what is said in
it where that is known, else of what the reference itself writes. The tokens that stand before every transcript are
given, and not compared. Beside these figures stand whole transcripts, which each model makes by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from exporter.checkpoint.extractor import all_extracted
from exporter.checkpoint.speech import Transcribing
from exporter.form import SPEECH
from exporter.measure.quality import NotFinite, Passages, encoded
from exporter.runner import EncoderDecoderRunner, Floats, Runner, Sample
from exporter.tasks.task import Task
from exporter.tasks.teacher_forcing import answer, compare
from exporter.tasks.vocabulary import OF_ITSELF


def _read(extractor: Any, sounds: str, tokens: int, window: int, stride: int) -> Passages:
    """The sounds of a list (checkpoint/sounds.py), one after another along the mel bands; their texts come after."""
    made = np.stack(all_extracted(extractor, sounds))
    count, mel, frames = made.shape
    none = np.zeros(0, np.int64)
    offsets = (np.arange(count + 1) * mel).astype(np.int64)
    return Passages(SPEECH, none, none, window, stride, sources=made.reshape(-1, frames), source_offsets=offsets)


def with_targets(passages: Passages, start: int, targets: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Passages:
    """The same with each sound's text: the tokens that are given behind `start`, and those that are compared."""
    offsets = np.cumsum([0, *(len(prompt) + len(text) for prompt, text in targets)]).astype(np.int64)
    compared = [
        np.arange(end - len(text), end, dtype=np.int64) for end, (_, text) in zip(offsets[1:], targets, strict=True)
    ]
    ids = np.concatenate([np.array([*prompt, *text], np.int64) for prompt, text in targets])
    return replace(passages, ids=ids, offsets=offsets, compared=np.concatenate(compared), start=start)


def transcript(runner: Runner, how: Transcribing, source: Sample) -> tuple[list[int], list[int]]:
    """(the tokens behind the first that it begins with, those of the text) of a spectrogram, by the runner's cache.

    The language, where it is not given, is what this very runner takes it for.
    """
    encoded(runner, source)
    assert isinstance(runner, EncoderDecoderRunner)
    start, prompt = [how.start], list(how.prompt)
    if how.languages:
        prompt[0] = how.language(_numbers(runner.prefill(np.array(start, np.int64)), start))
    begun: list[int] = [*start, *prompt]
    logits, text = runner.prefill(np.array(begun, np.int64)), list[int]()
    while True:
        text.append(how.choose(_numbers(logits, [*begun, *text]), not text))
        if text[-1] in how.stop or len(begun) + len(text) >= how.longest:
            return prompt, text
        logits = runner.step(text[-1])


def _numbers(logits: Floats, ids: Sequence[int]) -> Floats:
    if np.isnan(logits).any() or not np.isfinite(logits).any():
        raise NotFinite(np.array(ids, np.int64), logits)
    return logits


AUTOMATIC_SPEECH_RECOGNITION = Task(
    SPEECH, 1, _read, answer, compare, {**OF_ITSELF, "cosine": 1.0, "transcripts": 1.0}, ("sound.wav",)
)
