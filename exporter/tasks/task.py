"""A task: the record that a file of this room has, and what all of them are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from exporter.errors import JobError
from exporter.form import FORMS, Form
from exporter.job import MIN_TOKENS
from exporter.measure.perplexity import Forms
from exporter.measure.quality import Answers, Passages, Pool, Progress, Reference
from exporter.report.result import Figure
from exporter.runner import Floats, Ids, Runner

Compared = tuple[dict[str, Figure], Floats | None]  # a row's figures; the vectors that they are of, where there are any
Compares = Callable[[Runner, Reference, Progress, Pool, Forms | None], Compared]


@dataclass(frozen=True)
class Task:
    """A task, by optimum's name of it.

    `window`: tokens of a sample, unless the job says otherwise. `read` makes the samples of a plain text: (tokenizer,
    text, how many tokens, window, stride) to Passages; of pictures (image processor, their list, …), where the numbers
    say nothing. It raises JobError. `answer` asks the reference, `compare` an artifact, of its perplexity in the other
    forms too that were asked for; `of_itself` are the figures that `compare` finds of a model beside itself, of a text
    classifier by its problem type in text_classification.py. `example`: arguments of an artifact's program.
    """

    name: str
    window: int
    read: Callable[[Any, str, int, int, int], Passages]
    answer: Callable[[Runner, Passages, Progress, Pool], Answers]
    compare: Compares
    of_itself: Mapping[str, float]
    example: tuple[str, ...]

    @property
    def form(self) -> Form:
        return FORMS[self.name]


def passages_of(task: str, pieces: Sequence[Ids], window: int, stride: int, **more: Any) -> Passages:
    """Samples of token ids, one after another. Raises JobError for too few tokens to measure anything."""
    ids = np.concatenate(pieces)
    if len(ids) < MIN_TOKENS:
        raise JobError(
            f"the text has {len(ids)} tokens, and at least {MIN_TOKENS} are needed to measure anything: "
            "give a longer --eval-text"
        )
    offsets = np.cumsum([0, *map(len, pieces)]).astype(np.int64)
    return Passages(task, ids, offsets, window, stride, **more)


def whole_windows(tokenizer: Any, text: str, tokens: int, window: int) -> list[Ids]:
    """Passages of `window` ids each with their special tokens, about `tokens` in all.

    The last piece of a text is shorter than a window: it is left out unless it is all there is.
    """
    cut = tokenizer(text, truncation=True, max_length=window, return_overflowing_tokens=True)["input_ids"]
    cut = cut if isinstance(cut[0], list) else [cut]
    return [np.array(piece, np.int64) for piece in cut[: max(1, min(len(cut) - 1, tokens // window))]]


def ordinary(tokenizer: Any, ids: Ids) -> Ids:
    """The places of [N] ids that are words of the text: no special token."""
    return np.flatnonzero(~np.isin(ids, list(tokenizer.all_special_ids)))
