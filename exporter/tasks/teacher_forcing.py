"""What tasks share whose encoder reads a source and whose decoder is asked for the target's tokens, each after those
before it: their figures as of text generation, and the cosine of the encoder's states, pooled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np

from exporter.measure.arithmetic import log_softmax
from exporter.measure.perplexity import Forms
from exporter.measure.quality import Answers, Passages, Pool, Progress, Reference, checked, encoded
from exporter.runner import Floats, Ids, Runner
from exporter.tasks.feature_extraction import cosines
from exporter.tasks.task import Compared
from exporter.tasks.vocabulary import answering, comparing


def _scored(
    runner: Runner, passages: Passages, progress: Progress, states: list[Floats], pool: Pool
) -> Iterator[tuple[Floats, Ids]]:
    """Each passage's tokens that are compared; the vector of its source is added to `states`."""
    count = len(passages.offsets) - 1
    for number, (begin, end) in enumerate(pairwise(passages.offsets)):
        states.append(pool(encoded(runner, passages.source(number))))
        places = np.arange(begin, end)
        if passages.compared is not None:
            places = passages.compared[(passages.compared >= begin) & (passages.compared < end)]
        logits = checked(runner, passages.decoded(number))
        yield log_softmax(logits[places - begin]), passages.ids[places]
        progress(number + 1, count)


def answer(runner: Runner, passages: Passages, progress: Progress, pool: Pool) -> Answers:
    """What the reference says of all passages."""
    states: list[Floats] = []
    answers = answering(partial(_scored, states=states, pool=pool))(runner, passages, progress, pool)
    return replace(answers, vectors=np.stack(states))


def compare(runner: Runner, reference: Reference, progress: Progress, pool: Pool, forms: Forms | None) -> Compared:
    """The figures of an artifact."""
    states: list[Floats] = []
    figures, _ = comparing(partial(_scored, states=states, pool=pool))(runner, reference, progress, pool, forms)
    return figures | cosines(reference.passages, reference.answers.vectors, np.stack(states)), None
