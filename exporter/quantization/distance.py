"""How far a quantized model's answers are from the float model's: as the artifact's will be judged, without labels.

Generation, masks and one label of several, of a text or of each token: KL(float || quantized) in nats; of the two ends
of an answer the KL of each over the places. Several labels at once: the same of each label's
sigmoid. A number: the error over the standard deviation of the float answers. Feature extraction: 1 - cosine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporter.checkpoint.problem import problem_type
from exporter.form import FORMS
from exporter.types import FEATURES, MULTI_LABEL, REGRESSION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_ROWS = 64  # of logits that are compared at a time
_CONSTANT = 1e-4  # of the largest answer: a spread below it is the arithmetic's


def kind_of(config: Any, task: str) -> str:
    """What decides the distance: the task, or a classifier's problem type, of a transformers configuration."""
    if FORMS[task].answers == "states":
        return FEATURES
    if not FORMS[task].classifier:
        return task
    return problem_type({"problem_type": config.problem_type, "num_labels": config.num_labels})


def unit(kind: str) -> str:
    """A loss's unit, for people."""
    return {FEATURES: "1 - cosine", REGRESSION: "standard deviations"}.get(kind, "KL, nats")


class Distance:
    """Compares with the float model's outputs: [T, V] or [T, C], else [1, C] or [1, H], each for a window."""

    def __init__(self, kind: str, outputs: Sequence[Tensor]) -> None:
        import torch

        self._kind = kind
        self.scale: Tensor | None = None  # what the error of a number is divided by
        compared_raw = kind in (FEATURES, REGRESSION, MULTI_LABEL)
        self._answers = [one if compared_raw else one.log_softmax(-1) for one in outputs]
        if kind == REGRESSION:
            answers = torch.cat(self._answers).double()
            largest, spread = answers.abs().amax(0), answers.std(0, correction=0)
            own = torch.where(largest > 0, largest, torch.ones_like(largest))
            self.scale = torch.where(spread <= _CONSTANT * largest, own, spread)

    def __call__(self, window: int, outputs: Tensor) -> float:
        """The loss of outputs for the window of that number."""
        import torch

        expected = self._answers[window]
        if self._kind == FEATURES:
            return 1 - float(torch.nn.functional.cosine_similarity(expected.double(), outputs.double()).mean())
        if self._kind == REGRESSION:
            assert self.scale is not None
            return float(((expected.double() - outputs.double()).abs() / self.scale).mean())
        if self._kind == MULTI_LABEL:
            return _bernoulli(expected.double(), outputs.double())
        rows = []  # of a large vocabulary, each intermediate tensor would be a hundred megabytes
        for log_p, logits in zip(torch.split(expected, _ROWS), torch.split(outputs, _ROWS), strict=True):
            terms = log_p.exp() * (log_p - logits.log_softmax(-1))
            rows.append(terms.sum(-1, dtype=torch.float64))
        return float(torch.cat(rows).mean())


def _bernoulli(expected: Tensor, outputs: Tensor) -> float:
    from torch.nn.functional import logsigmoid

    terms = [logsigmoid(sign * expected) - logsigmoid(sign * outputs) for sign in (1, -1)]  # yes and no
    return float((expected.sigmoid() * terms[0] + (-expected).sigmoid() * terms[1]).mean())
