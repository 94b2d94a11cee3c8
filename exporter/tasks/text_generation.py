"""text-generation: a causal LM continues a text.

Measured on one long text by a sliding window: each token is scored once, with as much left context as the window
allows. Perplexity, its ratio, KL and top-1 as measure/quality.py has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from exporter.form import GENERATION
from exporter.measure.arithmetic import log_softmax
from exporter.measure.quality import Passages, Progress, checked
from exporter.runner import Floats, Ids, Runner
from exporter.tasks.task import Task, passages_of
from exporter.tasks.vocabulary import OF_ITSELF, answering, comparing


def windows(tokens: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, end, first scored) for each window over `tokens` token ids; every token but the first is scored once.

    Where windows do not overlap (a stride of a whole window) none scores its first token: nothing stands before it.
    """
    scored = 1
    for begin in range(0, tokens, stride):
        end, first = min(begin + window, tokens), max(scored, begin + 1)
        if first < end:
            yield begin, end, first
            scored = end


def _read(tokenizer: Any, text: str, tokens: int, window: int, stride: int) -> Passages:
    """The first `tokens` ids of the text, as one passage."""
    return passages_of(GENERATION, [np.array(tokenizer(text)["input_ids"][:tokens], np.int64)], window, stride)


def _scored(runner: Runner, passages: Passages, progress: Progress) -> Iterator[tuple[Floats, Ids]]:
    spans = list(windows(len(passages.ids), passages.window, passages.stride))
    for done, (begin, end, first) in enumerate(spans):
        logits = checked(runner, passages.ids[begin:end])
        yield log_softmax(logits[first - 1 - begin : end - 1 - begin]), passages.ids[first:end]
        progress(done + 1, len(spans))


TEXT_GENERATION = Task(GENERATION, 512, _read, answering(_scored), comparing(_scored), OF_ITSELF, ("Once upon a time",))
