"""GPTQ, against rounding to the nearest, by hand, and on a model."""

import weakref

import pytest
import torch
from weight_models import made, output_error, weight_and_hessian, windows

from exporter.checkpoint.linear import linear_layers, weight_of
from exporter.errors import BuildError
from exporter.quantization.compensation import DAMPING
from exporter.quantization.gptq import gptq, round_weights
from exporter.quantization.grid import quantized, rounded
from exporter.quantization.hessians import hessians
from exporter.quantization.simulation import simulated
from exporter.scheme import Scheme
from exporter.stages.prune.sparsegpt import prune_and_compensate

SCHEMES = [
    Scheme(weight=weight, group=group, symmetric=symmetric)
    for weight in ("int4", "int8")
    for group in (None, 32)
    for symmetric in (True, False)
]
INT4 = Scheme(weight="int4", group=32, symmetric=False)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_with_inputs_that_do_not_depend_on_one_another_it_rounds_to_the_nearest(scheme):
    weight, _ = weight_and_hessian()
    assert torch.equal(gptq(weight, torch.eye(96) * 7, scheme), rounded(weight, scheme))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_its_output_error_is_far_below_roundings(scheme):
    weight, hessian = weight_and_hessian()
    nearest = output_error(weight, rounded(weight, scheme), hessian)
    assert output_error(weight, gptq(weight, hessian, scheme), hessian) < 0.8 * nearest
    assert output_error(weight, gptq(weight, hessian, scheme, damping=0.01), hessian) < 0.5 * nearest


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_targets_find_its_codes_again(scheme):
    weight, hessian = weight_and_hessian()
    on_grid = gptq(weight, hessian, scheme)
    again = quantized(on_grid, scheme)
    assert (again.floats() - on_grid).abs().max() <= 1e-6 * on_grid.abs().max()
    # The same integers, or all of a group's divided by what they have in common.
    first = quantized(weight, scheme, hessian.diagonal() + DAMPING * hessian.diagonal().mean())
    steps = first.scales / again.scales
    assert (steps * (again.scales / first.scales).round() - 1).abs().max() < 1e-4


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_zeros_stay_and_the_others_make_good_what_rounding_does(scheme):
    weight, hessian = weight_and_hessian()
    weight = weight * (torch.rand(weight.shape, generator=torch.Generator().manual_seed(3)) > 0.5)
    found = gptq(weight, hessian, scheme)
    assert bool((found[weight == 0] == 0).all())
    assert output_error(weight, found, hessian) < 0.9 * output_error(weight, rounded(weight, scheme), hessian)


def test_two_columns_by_hand():
    # The third column makes the step 1 and depends on nothing. The second has the larger input of the others: it goes
    # first, 0.4 to 0. With H01 / H00 = 0.9 the first one makes good 0.9 * 0.4: -20.6 becomes -20.24, and so -20.
    hessian = torch.tensor([[1.0, 0.9, 0.0], [0.9, 2.0, 0.0], [0.0, 0.0, 3.0]])
    weight = torch.tensor([[-20.6, 0.4, 127.0], [-20.3, 0.4, 127.0], [20.3, 0.4, -127.0]])
    expected = torch.tensor([[-20.0, 0.0, 127.0], [-20.0, 0.0, 127.0], [21.0, 0.0, -127.0]])
    assert torch.equal(gptq(weight, hessian, Scheme(weight="int8"), damping=0.0), expected)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_channels_that_never_fire(scheme):
    weight, hessian = weight_and_hessian()
    hessian[5] = hessian[:, 5] = 0
    hessian[32:64] = hessian[:, 32:64] = 0
    result = gptq(weight, hessian, scheme)
    assert result.isfinite().all()
    # Where nothing is known of the inputs it rounds, within the range that was chosen for those that are known.
    assert (result - weight)[:, 5].abs().max() < 0.31 * weight.abs().max()
    assert torch.equal(gptq(weight, torch.zeros(96, 96), scheme), rounded(weight, scheme))
    assert gptq(torch.zeros(4, 96), hessian, scheme).abs().max() == 0


def test_a_hessian_of_few_rows_is_no_obstacle():
    rows = torch.randn(3, 96, generator=torch.Generator().manual_seed(1))
    weight, _ = weight_and_hessian()
    result = gptq(weight, rows.T @ rows, INT4)
    assert output_error(weight, result, rows.T @ rows) < 0.1 * output_error(
        weight, rounded(weight, INT4), rows.T @ rows
    )


@pytest.mark.parametrize("broken", ["weight", "hessian"])
def test_nan_is_refused(broken):
    weight, hessian = weight_and_hessian()
    (weight if broken == "weight" else hessian)[3, 3] = torch.nan
    with pytest.raises(BuildError, match="NaN or Inf"):
        gptq(weight, hessian, INT4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_a_model(name):
    model, ids = made(name), windows(16)
    names = [layer for layer in linear_layers(model) if layer != "lm_head"]
    schemes = dict.fromkeys(names, INT4)
    expected = _hidden(model, ids)
    with simulated(model, schemes):
        nearest = _hidden(model, ids)
    done = round_weights(model, schemes, hessians(model, ids, names, 200_000, lambda done, of: None))
    after = _hidden(model, ids)
    assert sorted(done) == sorted(names)
    assert (after - expected).square().sum() < 0.7 * (nearest - expected).square().sum()
    with simulated(model, schemes):
        again = _hidden(model, ids)
    assert torch.allclose(again, after, atol=1e-4 * float(after.abs().max()))


def test_a_tied_head_is_left_as_it_is():
    model, ids = made("gpt2"), windows()
    before = model.lm_head.weight.clone()
    names = list(linear_layers(model))
    done = round_weights(model, dict.fromkeys(names, INT4), hessians(model, ids, names, 1 << 30, lambda done, of: None))
    assert sorted(done) == sorted(set(names) - {"lm_head"})
    assert torch.equal(model.lm_head.weight, before)


def test_a_model_that_is_broken_is_named():
    model, ids = made("llama"), windows()
    names = [name for name in linear_layers(model) if name.endswith("k_proj")]
    given = {name: torch.eye(64) for name in names}
    weight_of(linear_layers(model)[names[1]])[0, 0] = torch.inf
    with pytest.raises(BuildError, match=r"model.layers.1.self_attn.k_proj: its weight or its inputs hold NaN or Inf"):
        round_weights(model, dict.fromkeys(names, INT4), [{name: hessian} for name, hessian in given.items()])
    assert ids.shape == (4, 48)


@pytest.mark.parametrize("method", ["gptq", "sparsegpt"])
def test_of_the_hessians_one_block_is_held_at_a_time(method):
    """The budget is of all that is there: what was used is gone when the next block is made."""
    model, ids = made("llama"), windows()
    names = [name for name in linear_layers(model) if name != "lm_head"]
    still_there = []

    def blocks():
        before = []
        for block in hessians(model, ids, names, 20_000, lambda done, of: None):
            still_there.append(sum(matrix() is not None for matrix in before))
            before = [weakref.ref(matrix) for matrix in block.values()]
            yield block

    if method == "gptq":
        round_weights(model, dict.fromkeys(names, INT4), blocks())
    else:
        prune_and_compensate({name: weight_of(linear_layers(model)[name]) for name in names}, blocks(), None)
    assert still_there == [0] * 8  # two layers of four inputs, each larger than the budget's rest


def _hidden(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
