"""QAT's loss and its gradient: KL to the float teacher, mixed with the cross entropy of the text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_NUMBERS = 1 << 24  # of logits that are worked on at once: a vocabulary is large


def losses(student: Tensor, teacher: Tensor, ids: Tensor, kd: float) -> tuple[float, float, Tensor]:
    """(KL, cross entropy, gradient) of logits [B, T, V] float32 and ids [B, T]; both in nats, means over B (T - 1).

    KL is KL(teacher || student), and the gradient that of kd KL + (1 - kd) CE by the student's logits:
    softmax(student) - kd softmax(teacher) - (1 - kd) onehot. It is written over `teacher`, so that no third tensor of
    that size is there. Distillation as in Hinton et al. 2015 (arXiv:1503.02531), at temperature 1.
    """
    import torch

    batch, length, vocabulary = student.shape
    count, chunk = batch * (length - 1), max(1, _NUMBERS // vocabulary)
    kl, ce = 0.0, 0.0
    with torch.no_grad():
        for row in range(batch):
            for begin in range(0, length - 1, chunk):
                end = min(begin + chunk, length - 1)
                ours, theirs = student[row, begin:end].log_softmax(-1), teacher[row, begin:end].log_softmax(-1)
                targets = ids[row, begin + 1 : end + 1, None]
                ce -= float(ours.gather(-1, targets).sum(dtype=torch.float64))
                target_probabilities = theirs.exp()
                kl += float((target_probabilities * (theirs - ours)).sum(dtype=torch.float64))
                gradient = ours.exp_().sub_(target_probabilities, alpha=kd)
                gradient.scatter_add_(-1, targets, torch.full_like(targets, kd - 1, dtype=gradient.dtype))
                teacher[row, begin:end] = gradient / count
        teacher[:, -1] = 0
    return kl / count, ce / count, teacher
