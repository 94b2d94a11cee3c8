"""zero-shot-image-classification: which of some texts fits a picture best, by the vectors of two towers.

KL of the texts' probabilities for each picture, and how often the choice is the same, both of the whole model's answer;
and of each tower by itself the cosine of its vectors: `picture_cosine`, `text_cosine`. Their gate, and `cosine`, is of
the lower one. Texts are asked alone there, and padded to the longest in the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from exporter.errors import BuildError
from exporter.form import ZERO_SHOT as NAME
from exporter.measure.classification import compare_answers
from exporter.measure.perplexity import Forms
from exporter.measure.quality import Answers, Passages, Pool, Progress, Reference, finite
from exporter.report.result import Figure
from exporter.runner import Floats, Ids, MatchingRunner, Runner
from exporter.tasks.feature_extraction import cosines
from exporter.tasks.image_classification import pictures_of
from exporter.tasks.task import Compared, Task
from exporter.tasks.vectors import answering
from exporter.types import SINGLE_LABEL

_TOGETHER = 8  # pictures in a batch: all texts are read again for each

# What pictures are matched with unless a job gives its own: things, scenes and what drawn pictures show, in few words
# and in many, so that texts of many lengths are padded together.
TEXTS = (
    "dog", "a cat", "a bird in a tree", "a photo of a horse", "a photo of a car", "a photo of a bicycle",
    "a photo of a person", "a photo of food on a plate", "a photo of a flower", "a photo of a building",
    "a photo of a mountain under a clear sky", "a photo of the sea at sunset, with a small boat far away",
    "a street at night", "a room with a table and two chairs", "a page of printed text", "a map", "a handwritten note",
    "a black and white photo", "a blurry photo", "a painting of a landscape", "a drawing of a face",
    "red", "a blue circle", "a green rectangle", "yellow and purple discs before a gray background",
    "an abstract pattern of stripes", "a smooth gradient from dark to light", "noise", "nothing",
    "coloured rectangles and circles of several sizes, one before the other, on a striped background with much grain",
    "a close-up photo of a piece of cloth", "a screenshot of a web page",
)  # fmt: skip


def _read(processor: Any, pictures: str, tokens: int, window: int, stride: int) -> Passages:
    """The pictures alone; `matched_with` adds the texts."""
    return pictures_of(NAME, processor, pictures)


def matched_with(passages: Passages, texts: Sequence[Ids]) -> Passages:
    """Pictures, and the token ids of each text that they are matched with."""
    offsets = np.cumsum([0, *map(len, texts)]).astype(np.int64)
    return replace(passages, sources=np.concatenate(texts), source_offsets=offsets)


def padded(texts: Sequence[Ids]) -> tuple[Ids, Ids]:
    """[N, T] and their mask: each text is followed by its last token again, the end, as CLIP's tokenizers pad."""
    longest = max(map(len, texts))
    ids = np.stack([np.concatenate([text, np.full(longest - len(text), text[-1])]) for text in texts])
    mask = np.stack([np.arange(longest) < len(text) for text in texts])
    return ids.astype(np.int64), mask.astype(np.int64)


def match_with(runner: Runner, passages: Passages) -> None:
    """Gives a runner that matches pictures with texts all of the passages' texts; others nothing."""
    if isinstance(runner, MatchingRunner):
        runner.match(*padded(_texts(passages)))


def _texts(passages: Passages) -> list[Ids]:
    assert passages.source_offsets is not None
    return [passages.source(number) for number in range(len(passages.source_offsets) - 1)]


def _batches(passages: Passages) -> Iterator[Floats]:
    """Pictures [n, C, H, W], some at a time."""
    pictures = [passages.ids[begin:end] for begin, end in pairwise(passages.offsets)]
    for begin in range(0, len(pictures), _TOGETHER):
        yield np.stack(pictures[begin : begin + _TOGETHER])


def _asked(runner: Runner, passages: Passages, progress: Progress) -> tuple[Floats, Floats, Floats]:
    """How well each text matches [pictures, texts], and the vectors [pictures, D] and [texts, D] of the towers."""
    if not isinstance(runner, MatchingRunner):
        raise BuildError(f"{runner.engine} has no tower that reads texts")
    texts, count = _texts(passages), len(passages.offsets) - 1
    match_with(runner, passages)
    matches: list[Floats] = []
    pictures: list[Floats] = []
    for some in _batches(passages):
        matches += [*finite(some[0], runner.batch(some, np.ones(some.shape[:2], np.int64)))]
        pictures += [*finite(some[0], runner.pictures(some))]
        progress(len(matches), count)
    of_texts = [finite(ids, runner.texts(ids[None], np.ones_like(ids)[None]))[0] for ids in texts]
    return np.stack(matches), np.stack(pictures), np.stack(of_texts)


def _answer(runner: Runner, passages: Passages, progress: Progress, pool: Pool) -> Answers:
    matches, pictures, texts = _asked(runner, passages, progress)
    answers = answering(lambda *asked: matches)(runner, passages, progress, pool)
    return replace(answers, towers=np.concatenate([pictures, texts]))


def _compare(runner: Runner, reference: Reference, progress: Progress, pool: Pool, forms: Forms | None) -> Compared:
    passages, expected = reference.passages, reference.answers
    assert expected.towers is not None
    matches, pictures, texts = _asked(runner, passages, progress)
    figures = compare_answers(SINGLE_LABEL, expected.vectors, matches)
    seen = cosines(passages, expected.towers[: len(pictures)], pictures)["cosine"]
    read = cosines(passages, expected.towers[len(pictures) :], texts)["cosine"]
    return figures | {"cosine": _lower(seen, read), "picture_cosine": seen, "text_cosine": read}, matches


def _lower(one: Figure, other: Figure) -> Figure:
    """The one that is nearer to failing: two standard errors count, as they do for a gate."""
    return min(one, other, key=lambda figure: (figure.value or 0.0) - 2 * (figure.se or 0.0))


ZERO_SHOT_IMAGE_CLASSIFICATION = Task(
    NAME, 3, _read, _answer, _compare, {"kl": 0.0, "top1": 1.0, "cosine": 1.0},
    ("picture.png", "a cat", "a dog", "something else"),
)  # fmt: skip
