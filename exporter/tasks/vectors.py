"""What tasks share whose answers are compared as they are: a vector for each sample, or for each of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from exporter.errors import BuildError
from exporter.measure.perplexity import Forms
from exporter.measure.quality import Answers, Passages, Pool, Progress, Reference, checked, finite
from exporter.report.result import Figure
from exporter.runner import Floats, Ids, Runner, SegmentRunner
from exporter.tasks.task import Compared, Compares

Asked = Callable[[Runner, Passages, Progress, Pool], Floats]  # the vectors [S, D] of all samples
Distance = Callable[[Passages, Floats, Floats], dict[str, Figure]]  # (samples, the reference's vectors, the artifact's)


def answering(asked: Asked) -> Callable[[Runner, Passages, Progress, Pool], Answers]:
    """`answer` of a task that is asked so."""

    def answer(runner: Runner, passages: Passages, progress: Progress, pool: Pool) -> Answers:
        none = np.zeros((0, 0), np.float32)
        return Answers(np.zeros(0), none.astype(np.int32), none, none, asked(runner, passages, progress, pool))

    return answer


def comparing(asked: Asked, distance: Distance) -> Compares:
    """`compare` of the same."""

    def compare(runner: Runner, reference: Reference, progress: Progress, pool: Pool, forms: Forms | None) -> Compared:
        got = asked(runner, reference.passages, progress, pool)
        return distance(reference.passages, reference.answers.vectors, got), got

    return compare


def each(runner: Runner, passages: Passages, progress: Progress) -> Iterator[tuple[slice, Floats]]:
    """Of each passage: where its tokens are in `ids`, and the answer [T, D] to it (of a text classifier [1, C])."""
    count = len(passages.offsets) - 1
    for done, (begin, end) in enumerate(pairwise(passages.offsets)):
        ids = passages.ids[begin:end]
        if passages.segments is None:
            out = checked(runner, ids)
        else:
            out = finite(ids, _segmented(runner, ids, passages.segments[begin:end]))
        yield slice(int(begin), int(end)), out
        progress(done + 1, count)


def _segmented(runner: Runner, ids: Ids, segments: Ids) -> Floats:
    if not isinstance(runner, SegmentRunner):
        raise BuildError(f"{runner.engine} cannot be told which of two texts a token is of: pairs need that here")
    return runner.segmented(ids, segments)


def of_tokens(runner: Runner, passages: Passages, progress: Progress, pool: Pool) -> Floats:
    """[S, D]: the answers at the tokens that are compared."""
    whole = np.concatenate([out for _, out in each(runner, passages, progress)])
    return whole if passages.compared is None else whole[passages.compared]
