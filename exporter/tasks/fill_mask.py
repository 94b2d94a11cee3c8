"""fill-mask: a masked LM says which token stands behind a mask.

Pseudo-perplexity (Salazar et al. 2020, "Masked Language Model Scoring"): each token of a passage is masked once, alone,
and scored with all others to both sides of it. Figures as of text generation, over those tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from exporter.errors import JobError
from exporter.form import FILL_MASK as NAME
from exporter.measure.arithmetic import log_softmax
from exporter.measure.quality import Passages, Progress, checked, finite
from exporter.runner import BatchRunner, Floats, Ids, Runner
from exporter.tasks.task import Task, ordinary, passages_of, whole_windows
from exporter.tasks.vocabulary import OF_ITSELF, answering, comparing

_BATCH = 8  # passages with another mask each, at a time: of a vocabulary of 50,000 tokens, 200 MB of logits


def _read(tokenizer: Any, text: str, tokens: int, window: int, stride: int) -> Passages:
    """Passages of a window each. Raises JobError where the tokenizer has no mask."""
    if tokenizer.mask_token_id is None:
        raise JobError("its tokenizer has no mask token (tokenizer_config.json's mask_token), and fill-mask needs one")
    pieces = whole_windows(tokenizer, text, tokens, window)
    compared = ordinary(tokenizer, np.concatenate(pieces))
    return passages_of(NAME, pieces, window, stride, compared=compared, mask_id=int(tokenizer.mask_token_id))


def _scored(runner: Runner, passages: Passages, progress: Progress) -> Iterator[tuple[Floats, Ids]]:
    assert passages.compared is not None
    assert passages.mask_id is not None
    done, total = 0, len(passages.compared)
    for begin, end in pairwise(passages.offsets):
        places = passages.compared[(passages.compared >= begin) & (passages.compared < end)] - begin
        ids = passages.ids[begin:end]
        for some in np.array_split(places, -(-len(places) // _BATCH) or 1):
            masked = np.tile(ids, (len(some), 1))
            rows = np.arange(len(some))
            masked[rows, some] = passages.mask_id
            if len(some):
                yield log_softmax(_asked(runner, masked, some)), ids[some]
            done += len(some)
            progress(done, total)


def _asked(runner: Runner, masked: Ids, places: Ids) -> Floats:
    """[n, V]: the answers at one place of each of [n, T]."""
    if not isinstance(runner, BatchRunner):
        return np.stack([checked(runner, ids)[place] for ids, place in zip(masked, places, strict=True)])
    rows = runner.batch(masked, np.ones_like(masked))[np.arange(len(masked)), places]
    return finite(masked.ravel(), rows)


FILL_MASK = Task(
    NAME, 128, _read, answering(_scored), comparing(_scored), OF_ITSELF, ("The capital of France is [MASK].",)
)
