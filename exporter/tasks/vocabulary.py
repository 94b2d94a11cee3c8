"""What tasks share whose answers are distributions over the vocabulary: perplexity, KL and top-1 of scored tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from exporter.measure.arithmetic import Doubles, divergence, divergence_of, exponential, mean, top_of
from exporter.measure.perplexity import Forms
from exporter.measure.quality import Answers, Passages, Pool, Progress, Reference
from exporter.report.result import Figure
from exporter.runner import Floats, Ids, Runner
from exporter.tasks.task import Compared, Compares

# Log-probabilities [n, V] of some places of the text at a time, and the tokens [n] that stand there.
Scored = Callable[[Runner, Passages, Progress], Iterator[tuple[Floats, Ids]]]
OF_ITSELF = {"kl": 0.0, "top1": 1.0}


def answering(scored: Scored) -> Callable[[Runner, Passages, Progress, Pool], Answers]:
    """`answer` of a task whose places are scored so."""

    def answer(runner: Runner, passages: Passages, progress: Progress, pool: Pool) -> Answers:
        none = np.zeros((0, 0), np.float32)
        nll: list[Doubles] = []
        top_ids: list[Any] = []
        top_logp: list[Any] = []
        rest: list[Any] = []
        for logp, tokens in scored(runner, passages, progress):
            nll.append(-_at(logp, tokens))
            for column, part in zip((top_ids, top_logp, rest), top_of(logp), strict=True):
                column.append(part)
        return Answers(
            np.concatenate(nll), np.concatenate(top_ids), np.concatenate(top_logp), np.concatenate(rest), none
        )

    return answer


def comparing(scored: Scored) -> Compares:
    """`compare` of the same."""

    def compare(runner: Runner, reference: Reference, progress: Progress, pool: Pool, forms: Forms | None) -> Compared:
        answers = reference.answers
        count, start = len(answers.nll), 0
        nll, kl, agree = np.empty(count), np.empty(count), np.empty(count)
        for logp, tokens in scored(runner, reference.passages, progress):
            span = slice(start, start + len(tokens))
            start = span.stop
            nll[span] = -_at(logp, tokens)
            top = answers.top_ids[span]
            kl[span] = divergence_of((top, answers.top_logp[span], answers.rest_logp[span]), logp)
            agree[span] = logp.argmax(-1) == top[:, 0]
        assert start == count
        return {
            "ppl": exponential(*mean(nll)),
            "ppl_ratio": exponential(*mean(nll - answers.nll)),
            "kl": divergence(kl),
            "top1": Figure(*mean(agree)),
            **(forms.figures(nll) if forms else {}),
        }, None

    return compare


def _at(logp: Floats, tokens: Ids) -> Doubles:
    return np.take_along_axis(logp, tokens[:, None], -1)[:, 0].astype(np.float64)
