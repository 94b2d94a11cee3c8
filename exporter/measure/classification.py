"""How far a classifier's answers are from the reference's, by the kind of question that it answers.

One label of several: KL of the classes' probabilities, and how often the choice is the same. Several labels at once:
the mean KL over the labels, each a yes or no of its own (a sigmoid), and how often all are decided alike at 0.5.
A number (regressors, rerankers, reward models): the error over the standard deviation of the reference's answers, so
that 0.1 is a tenth of what tells two texts apart, and the correlations of the values and of their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from exporter.measure.arithmetic import Doubles, divergence, log_softmax, mean
from exporter.report.result import Figure
from exporter.runner import Floats
from exporter.types import MULTI_LABEL, REGRESSION, SINGLE_LABEL

ALIKE = "the reference answers all texts alike: it says nothing of this artifact; give other texts with --eval-text"
_CONSTANT = 1e-4  # of the largest answer: a spread below it is the arithmetic's, not the texts'


def compare_answers(problem: str, expected: Floats, got: Floats) -> dict[str, Figure]:
    """The figures of [passages, C] logits beside the reference's."""
    if problem == SINGLE_LABEL and expected.shape[-1] == 1:
        problem = REGRESSION  # a head with code of its own: the softmax of one logit is 1, whatever it is
    return _COMPARES[problem](expected, got)


def _single_label(expected: Floats, got: Floats) -> dict[str, Figure]:
    p, q = log_softmax(expected), log_softmax(got)
    kl = (np.exp(p) * (p - q)).sum(-1, dtype=np.float64)
    chosen = expected.argmax(-1)
    return {"kl": divergence(kl), "top1": _agreement(chosen[:, None], got.argmax(-1)[:, None])}


def _multi_label(expected: Floats, got: Floats) -> dict[str, Figure]:
    terms = [
        np.exp(_log_sigmoid(sign * expected)) * (_log_sigmoid(sign * expected) - _log_sigmoid(sign * got))
        for sign in (1, -1)  # yes and no
    ]
    kl = (terms[0] + terms[1]).mean(-1)
    return {"kl": divergence(kl), "top1": _agreement(expected > 0, got > 0)}


def _log_sigmoid(logits: Floats) -> Doubles:
    result: Doubles = -np.logaddexp(0.0, -logits.astype(np.float64))
    return result


def _agreement(expected: np.ndarray, got: np.ndarray) -> Figure:
    """How often all of a passage's decisions [passages, decisions] are the reference's."""
    value, se = mean((expected == got).all(-1).astype(np.float64))
    return Figure(value, se, ALIKE if (expected == expected[0]).all() else None)


def _regression(expected: Floats, got: Floats) -> dict[str, Figure]:
    """Of several outputs each is measured by its own spread, and the mean over them counts."""
    a, b = expected.astype(np.float64), got.astype(np.float64)
    largest, spread = np.abs(a).max(0), a.std(0)
    constant = spread <= _CONSTANT * largest
    # What does not vary can only be compared with its own size; all zeros with 1.
    scale = np.where(constant, np.where(largest > 0, largest, 1.0), spread)
    value, se = mean((np.abs(a - b) / scale).mean(-1))
    figures = {"regression_error": Figure(value, se)}
    if constant.all():
        return figures | {"pearson": Figure(detail=ALIKE), "spearman": Figure(detail=ALIKE)}
    varies = ~constant
    figures["pearson"] = _correlation(a[:, varies], b[:, varies])
    figures["spearman"] = _correlation(_ranks(a[:, varies]), _ranks(b[:, varies]))
    return figures


def _correlation(a: Doubles, b: Doubles) -> Figure:
    """The mean over the columns of [passages, outputs], and its error to first order."""
    a, b = a - a.mean(0), b - b.mean(0)
    sizes = np.sqrt((a * a).sum(0) * (b * b).sum(0))
    # An artifact that answers all texts alike orders none of them.
    value = float(np.where(sizes > 0, (a * b).sum(0) / np.where(sizes > 0, sizes, 1.0), 0.0).mean())
    return Figure(min(value, 1.0), (1 - min(value, 1.0) ** 2) / math.sqrt(max(len(a) - 1, 1)))


def _ranks(values: Doubles) -> Doubles:
    """Each column's ranks; equal values share the mean of theirs."""
    columns = []
    for column in values.T:
        _, place, count = np.unique(column, return_inverse=True, return_counts=True)
        last = np.cumsum(count)
        columns.append((last - (count - 1) / 2)[place.ravel()])
    return np.stack(columns, axis=-1)


_COMPARES: Mapping[str, Callable[[Floats, Floats], dict[str, Figure]]] = {
    SINGLE_LABEL: _single_label,
    MULTI_LABEL: _multi_label,
    REGRESSION: _regression,
}
