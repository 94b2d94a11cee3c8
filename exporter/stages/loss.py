"""The loss of a student that learns from a teacher's logits, and its gradient: KL to it, mixed with cross entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_NUMBERS = 1 << 24  # of logits that are worked on at once: a vocabulary is large


def losses(
    student: Tensor, teacher: Tensor, ids: Tensor, soft: float, hard: float, temperature: float = 1.0
) -> tuple[float, float, Tensor]:
    """(KL, cross entropy, gradient) of logits [B, T, V] float32 and ids [B, T]; both in nats, means over B (T - 1).

    KL is KL(teacher || student) of logits divided by the temperature, CE of the logits as they are. The gradient, by
    the student's logits, is that of soft temperature^2 KL + hard CE (Hinton et al. 2015, arXiv:1503.02531). It is
    written over `teacher`, so that no third tensor of that size is there.
    """
    import torch

    batch, length, vocabulary = student.shape
    count, chunk = batch * (length - 1), max(1, _NUMBERS // vocabulary)
    kl, ce = 0.0, 0.0
    with torch.no_grad():
        for row in range(batch):
            for begin in range(0, length - 1, chunk):
                end = min(begin + chunk, length - 1)
                ours, targets = student[row, begin:end].log_softmax(-1), ids[row, begin + 1 : end + 1, None]
                ce -= float(ours.gather(-1, targets).sum(dtype=torch.float64))
                softer = ours if temperature == 1 else (student[row, begin:end] / temperature).log_softmax(-1)
                theirs = (teacher[row, begin:end] / temperature).log_softmax(-1)
                wanted = theirs.exp()
                kl += float((wanted * (theirs - softer)).sum(dtype=torch.float64))
                gradient = softer.exp().sub_(wanted).mul_(soft * temperature)
                gradient.add_(ours.exp(), alpha=hard)
                gradient.scatter_add_(-1, targets, torch.full_like(targets, -hard, dtype=gradient.dtype))
                teacher[row, begin:end] = gradient / count
        teacher[:, -1] = 0
    return kl / count, ce / count, teacher
