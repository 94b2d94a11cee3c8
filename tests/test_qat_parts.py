"""The parts of quantization-aware training: its options, and the rounding that gradients go through."""

import re
from pathlib import Path

import pytest
import torch

from exporter.errors import JobError
from exporter.job import Job
from exporter.pipeline.sections import read_sections
from exporter.quantization.grid import rounded, rounded_input
from exporter.scheme import Scheme
from exporter.stages.train.options import QatOptions
from exporter.stages.train.rounding import RoundedInput, RoundedWeight

INT4 = Scheme(weight="int4", group=32, symmetric=False)


def options_of(**keys):
    return read_sections(Job(model="tiny", output="out", **keys)).qat


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"step": 3}, "unknown option of qat 'step'; did you mean steps"),
        ({"steps": 0}, "--qat-steps 0: input should be greater than or equal to 1"),
        ({"scheme": "int3"}, "--qat-scheme 'int3': input should be 'int8-static' or 'int4-weight'"),
        ({"lr": "fast"}, "--qat-lr 'fast': input should be a valid number"),
        (None, "qat: give its options, as in qat: {steps: 200}"),
    ],
    ids=str,
)
def test_options_that_are_wrong(section, says):
    with pytest.raises(JobError, match=f"^{re.escape(says)}"):
        options_of(qat=section)


def test_options():
    options = options_of(qat={"scheme": "int8-static", "checkpointing": True, "data": "a,b.txt", "lora": 8})
    assert (options.scheme, options.checkpointing, options.data, options.lora) == (
        "int8-static", True, Path("a,b.txt"), 8,
    )  # fmt: skip
    assert options.layer_scheme() == Scheme(weight="int8", input="static")
    assert QatOptions(steps=3).identity() == QatOptions(steps=3, save=1, data="x").identity()


def test_what_turns_it_on():
    assert options_of() is options_of(qat=False) is None
    assert options_of(qat=True) == options_of(qat={}) == QatOptions()


@pytest.mark.parametrize("scheme", [INT4, Scheme(weight="int4"), Scheme(weight="int8", group=32)], ids=str)
def test_rounding_a_weight_is_the_grids_and_its_gradients_are_lsqs(scheme):
    stored = torch.randn(8, 64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    rounding = RoundedWeight(stored, scheme, transposed=False, lora=None, seed=0)
    found = rounding(stored)
    assert torch.equal(found, rounded(stored.detach(), scheme))
    incoming = torch.randn(8, 64, generator=torch.Generator().manual_seed(3))
    torch.autograd.backward(found, incoming)
    assert stored.grad is not None
    passed = stored.grad == incoming
    assert ((stored.grad == 0) | passed).all()
    assert 0.9 < passed.float().mean() <= 1  # the rest is cut off by the grid's ends
    # LSQ: a value within the grid moves with the step by what it was rounded by, one at its end by its code.
    error = torch.where(passed, found - stored, found).detach()  # times the step: of the step's logarithm
    wanted = (incoming * error).reshape(*rounding.log_steps.shape, -1).sum(-1)
    assert rounding.log_steps.grad is not None
    assert torch.allclose(rounding.log_steps.grad, wanted, atol=1e-4)


@pytest.mark.parametrize("ends", [(-1.0, 1.0), (-0.5, 2.0), (0.0, 1.0)])
def test_rounding_an_input_is_the_grids_and_its_range_learns(ends):
    scheme = Scheme(weight="int8", input="static", range=ends)
    rounding = RoundedInput(scheme)
    inputs = (torch.randn(400, generator=torch.Generator().manual_seed(4)) * 2).requires_grad_()
    (found,) = rounding(torch.nn.Identity(), (inputs,))
    assert torch.equal(found, rounded_input(inputs.detach(), scheme))
    # Much lies beyond the range: to come nearer to the inputs, its ends must move outwards.
    torch.autograd.backward((found - inputs.detach()).square().sum())
    with torch.no_grad():
        rounding.log_range -= 0.1 * rounding.log_range.grad.sign()
    low, high = rounding.scheme().range
    assert high > ends[1]
    assert low == 0 if ends[0] == 0 else low < ends[0]
    assert rounding.scheme().symmetric_input == scheme.symmetric_input
    cut = (inputs < scheme.range[0] - 0.1) | (inputs > scheme.range[1] + 0.1)
    assert (inputs.grad[cut] == 0).all()
    assert cut.any()
