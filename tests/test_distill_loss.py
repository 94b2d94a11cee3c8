"""What a student learns, against the formula written out and torch's own gradient."""

import pytest
import torch
from torch.nn import functional

from exporter.stages.distill.objective import Objective, taught_by
from exporter.stages.distill.trainer import collate
from exporter.stages.loss import losses
from exporter.types import CLASSIFICATION, FEATURES, GENERATION, MULTI_LABEL, REGRESSION, SINGLE_LABEL


class Says(dict):
    """An answer of a model: by names, and as attributes."""

    __getattr__ = dict.__getitem__


def saying(**answers):
    return lambda **asked: Says(answers)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


BATCH = collate([{"input_ids": [5, 6, 7, 8]}, {"input_ids": [9, 4]}], pad=0)


def test_a_batch_is_padded_on_the_right():
    assert BATCH["input_ids"].tolist() == [[5, 6, 7, 8], [9, 4, 0, 0]]
    assert BATCH["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    rows = [
        {"input_ids": [1], "token_type_ids": [1], "labels": 2},
        {"input_ids": [1, 2], "token_type_ids": [0, 1], "labels": 0},
    ]
    batch = collate(rows, pad=9)
    assert batch["token_type_ids"].tolist() == [[1, 0], [0, 1]]
    assert batch["labels"].tolist() == [2, 0]


@pytest.mark.parametrize(("soft", "hard", "temperature"), [(1, 0, 1), (0.5, 0.5, 2), (0.3, 0.7, 4), (0, 1, 2)])
def test_the_tokens_gradient_is_torchs(soft, hard, temperature):
    student, teacher = random(2, 7, 11).requires_grad_(True), random(2, 7, 11, seed=1)
    ids = torch.randint(0, 11, (2, 7), generator=torch.Generator().manual_seed(2))
    ours, theirs = student[:, :-1].reshape(-1, 11), teacher[:, :-1].reshape(-1, 11)
    kl = functional.kl_div(
        (ours / temperature).log_softmax(-1), (theirs / temperature).softmax(-1), reduction="batchmean"
    )
    ce = functional.cross_entropy(ours, ids[:, 1:].reshape(-1))
    (soft * temperature**2 * kl + hard * ce).backward()
    found_kl, found_ce, gradient = losses(student.detach(), teacher, ids, soft, hard, temperature)
    assert (found_kl, found_ce) == (pytest.approx(kl.item(), rel=1e-5), pytest.approx(ce.item(), rel=1e-5))
    assert torch.allclose(gradient, student.grad, atol=1e-6)  # float32 sums of a few numbers about 1


def test_the_tokens_loss_reaches_the_weights():
    """A teacher with more rows of padding than the student: those are no answers."""
    student, teacher = random(2, 4, 11).requires_grad_(True), random(2, 4, 13, seed=1)
    parts = Objective(GENERATION, "", 0.5, 2.0, 0.0)(saying(logits=student), saying(logits=teacher), BATCH, [])
    parts.loss.backward()
    _, _, gradient = losses(
        student.detach(), random(2, 4, 13, seed=1)[..., :11].clone(), BATCH["input_ids"], 0.5, 0.5, 2.0
    )
    assert torch.equal(student.grad, gradient)
    assert float(parts.loss.detach()) == pytest.approx(0.5 * 4 * parts.soft + 0.5 * parts.hard, rel=1e-6)


def test_a_classifiers_loss():
    ours, theirs = random(2, 3), random(2, 3, seed=1)
    batch = BATCH | {"labels": torch.tensor([2.0, 0.0])}
    parts = Objective(CLASSIFICATION, SINGLE_LABEL, 0.25, 2.0, 0.0)(
        saying(logits=ours), saying(logits=theirs), batch, []
    )
    wanted = (theirs / 2).softmax(-1)
    kl = float((wanted * (wanted.log() - (ours / 2).log_softmax(-1))).sum(-1).mean())
    ce = -float(ours.log_softmax(-1)[[0, 1], [2, 0]].mean())
    assert (parts.soft, parts.hard) == (pytest.approx(kl, rel=1e-5), pytest.approx(ce, rel=1e-5))
    assert float(parts.loss) == pytest.approx(0.75 * 4 * kl + 0.25 * ce, rel=1e-5)
    alone = Objective(CLASSIFICATION, SINGLE_LABEL, 0.25, 2.0, 0.0)(
        saying(logits=ours), saying(logits=theirs), BATCH, []
    )
    assert alone.hard is None
    assert float(alone.loss) == pytest.approx(4 * kl, rel=1e-5)  # without labels all of it is the teacher's


def test_labels_that_exclude_nothing_are_yes_or_no_each():
    ours, theirs = random(2, 3), random(2, 3, seed=1)
    batch = BATCH | {"labels": torch.tensor([[1.0, 0, 1], [0, 0, 1]])}
    parts = Objective(CLASSIFICATION, MULTI_LABEL, 0.5, 2.0, 0.0)(saying(logits=ours), saying(logits=theirs), batch, [])
    p, q = (theirs / 2).sigmoid(), (ours / 2).sigmoid()
    kl = float((p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(-1).mean())
    assert parts.soft == pytest.approx(kl, rel=1e-4)
    same = Objective(CLASSIFICATION, MULTI_LABEL, 0.0, 2.0, 0.0)(
        saying(logits=theirs), saying(logits=theirs), BATCH, []
    )
    assert abs(same.soft) < 1e-6


def test_a_regressor_is_held_to_numbers():
    ours, theirs = random(2, 1), random(2, 1, seed=1)
    batch = BATCH | {"labels": torch.tensor([[1.0], [2.0]])}
    parts = Objective(CLASSIFICATION, REGRESSION, 0.5, 2.0, 0.0)(saying(logits=ours), saying(logits=theirs), batch, [])
    assert parts.soft == pytest.approx(float(((ours - theirs) ** 2).mean()))
    assert float(parts.loss) == pytest.approx(0.5 * parts.soft + 0.5 * parts.hard)


def test_padding_teaches_nothing():
    ours, theirs = random(2, 4, 6), random(2, 4, 6, seed=1)
    for one in (ours, theirs):
        one[1, 2:] = random(2, 6, seed=id(one) % 100)
    asked = Objective(FEATURES, "", 0.5, 2.0, 0.0)
    parts = asked(saying(last_hidden_state=ours), saying(last_hidden_state=theirs), BATCH, [])
    seen = BATCH["attention_mask"].bool()
    wanted = float(((ours - theirs)[seen] ** 2).sum() / (theirs[seen] ** 2).sum())
    assert parts.soft == pytest.approx(wanted, rel=1e-5)
    assert parts.hard is None


def test_hidden_states_have_a_uniform_map():
    assert [taught_by(number, 4, 7) for number in range(4)] == [0, 2, 4, 6]
    assert [taught_by(number, 7, 7) for number in range(7)] == list(range(7))
    assert [taught_by(number, 6, 31) for number in range(6)] == [0, 6, 12, 18, 24, 30]
