"""What a student learns: to answer as its teacher does (soft), the task itself (hard), and the teacher's hidden states.

The loss is alpha hard + (1 - alpha) T^2 KL + features error (Hinton et al. 2015, arXiv:1503.02531; hidden states as in
FitNets, Romero et al. 2014, arXiv:1412.6550, with a learned projection where the widths differ, and a uniform map of
the layers as in TinyBERT, Jiao et al. 2019, arXiv:1909.10351). What has no probabilities is held to the teacher's
numbers: a regressor by its squared error, an encoder without a head by that of its states over their square.

torch is imported at the top, for autograd functions are classes: import this file inside functions only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from exporter.stages.loss import losses
from exporter.types import FEATURES, GENERATION, MULTI_LABEL, REGRESSION


@dataclass(frozen=True)
class Parts:
    """A batch's loss, and what it is made of; None: not asked for, or the batch has no labels."""

    loss: Tensor
    soft: float
    hard: float | None
    features: float | None


@dataclass(frozen=True)
class Objective:
    """`task` and `problem_type` as in exporter.measure.quality.Passages; the weights as in DistillOptions."""

    task: str
    problem_type: str
    alpha: float
    temperature: float
    features: float

    def __call__(self, student: Any, teacher: Any, batch: Mapping[str, Tensor], projections: Iterable[Any]) -> Parts:
        """The loss of a batch: input_ids and attention_mask int64 [B, T], and labels where there are any.

        `projections`: for each hidden state of the student, how it comes to the teacher's width.
        """
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        asked: dict[str, Any] = {"output_hidden_states": True} if self.features else {}
        if self.task == GENERATION:
            asked["use_cache"] = False
        with torch.no_grad():
            wanted = teacher(**inputs, **asked)
        said = student(**inputs, **asked)
        mask = batch["attention_mask"]
        loss, soft, hard = self._answers(said, wanted, batch, mask)
        if not self.features:
            return Parts(loss, soft, hard, None)
        error = _states(said.hidden_states, wanted.hidden_states, mask, projections)
        return Parts(loss + self.features * error, soft, hard, float(error.detach()))

    def _answers(
        self, said: Any, wanted: Any, batch: Mapping[str, Tensor], mask: Tensor
    ) -> tuple[Tensor, float, float | None]:
        if self.task == FEATURES:
            error = _relative(said.last_hidden_state, wanted.last_hidden_state, mask)
            return error, float(error.detach()), None
        width = min(said.logits.shape[-1], wanted.logits.shape[-1])  # rows beyond the vocabulary are padding
        ours, theirs = said.logits[..., :width].float(), wanted.logits[..., :width].float()
        if self.task == GENERATION:
            weights = (1 - self.alpha, self.alpha, self.temperature)
            found: tuple[Tensor, float, float] = _tokens(ours, theirs, batch["input_ids"], *weights)
            return found
        labels = batch.get("labels")
        alpha = 0.0 if labels is None else self.alpha
        soft = self._soft(ours, theirs)
        # Nothing is divided by a temperature where there are no probabilities.
        loss = (1 - alpha) * soft * (1 if self.problem_type == REGRESSION else self.temperature**2)
        if labels is None:
            return loss, float(soft.detach()), None
        hard = self._hard(ours, labels)
        return loss + alpha * hard, float(soft.detach()), float(hard.detach())

    def _soft(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """How far logits [B, C] are from the teacher's, a mean over B: KL in nats, or a regressor's error."""
        if self.problem_type == REGRESSION:
            return functional.mse_loss(ours, theirs)
        cold, wanted = ours / self.temperature, theirs / self.temperature
        if self.problem_type == MULTI_LABEL:  # each label is a yes or no of its own
            both = functional.binary_cross_entropy_with_logits(cold, wanted.sigmoid(), reduction="none")
            own = functional.binary_cross_entropy_with_logits(wanted, wanted.sigmoid(), reduction="none")
            return (both - own).sum(-1).mean()
        return functional.kl_div(cold.log_softmax(-1), wanted.log_softmax(-1), reduction="batchmean", log_target=True)

    def _hard(self, ours: Tensor, labels: Tensor) -> Tensor:
        if self.problem_type == REGRESSION:
            return functional.mse_loss(ours, labels.reshape(ours.shape))
        if self.problem_type == MULTI_LABEL:
            return functional.binary_cross_entropy_with_logits(ours, labels)
        return functional.cross_entropy(ours, labels.long().reshape(-1))


class _Tokens(torch.autograd.Function):
    """(loss, KL, cross entropy) of logits [B, T, V], with the gradient that exporter.stages.loss works out in parts."""

    @staticmethod
    def forward(
        ctx: Any, ours: Tensor, theirs: Tensor, ids: Tensor, soft: float, hard: float, temperature: float
    ) -> Any:
        kl, ce, gradient = losses(ours, theirs, ids, soft, hard, temperature)
        ctx.save_for_backward(gradient)
        return ours.new_tensor(soft * temperature**2 * kl + hard * ce), kl, ce

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None, None, None, None, None


def _tokens(*given: Any) -> Any:
    function: Any = _Tokens
    return function.apply(*given)  # torch leaves it untyped


def _relative(ours: Tensor, theirs: Tensor, mask: Tensor) -> Tensor:
    """The squared error of states [B, T, H] over the teacher's square, of the tokens that are no padding."""
    seen = mask[..., None].to(ours.dtype)
    return ((ours - theirs) ** 2 * seen).sum() / (theirs**2 * seen).sum().clamp(min=1e-12)


def _states(ours: Sequence[Tensor], theirs: Sequence[Tensor], mask: Tensor, projections: Iterable[Any]) -> Tensor:
    """The mean error of the hidden states, the embeddings' included."""
    errors = [
        _relative(project(one), theirs[taught_by(number, len(ours), len(theirs))], mask)
        for number, (one, project) in enumerate(zip(ours, projections, strict=True))
    ]
    return torch.stack(errors).mean()


def taught_by(number: int, states: int, teachers: int) -> int:
    """Which of the teacher's hidden states a student's learns from: both count the embeddings' as the first."""
    return round(number * (teachers - 1) / (states - 1))
