"""AWQ: salient channels keep their precision, and the float model stays what it is until its weights are rounded."""

import pytest
import torch
from weight_models import answer, made, windows

from exporter.checkpoint.linear import linear_layers, weight_of
from exporter.quantization.awq import awq, clipped, salience
from exporter.quantization.folds import Fold, find_folds, fold
from exporter.quantization.grid import quantized
from exporter.quantization.input_rows import input_rows
from exporter.quantization.simulation import simulated
from exporter.scheme import Scheme

INT4 = Scheme(weight="int4", group=32, symmetric=False)


def plant_salient(model, ids):
    """Makes a few channels of every fold's inputs 30 times as large, and the weights that read them as much smaller."""
    for one in find_folds(model, ids).folds:
        factors = torch.ones(one.channels)
        factors[::13] = 1 / 30
        fold(model, one, factors)


def error(model, ids, schemes, expected):
    with simulated(model, schemes):
        return float((answer(model, ids) - expected).square().mean() / expected.square().mean())


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "bert"])
def test_planted_salient_channels(name):
    model, ids = made(name), windows(8)
    schemes = dict.fromkeys([layer for layer in linear_layers(model) if layer != "lm_head"], INT4)
    plant_salient(model, ids)
    expected = answer(model, ids)
    before = error(model, ids, schemes, expected)
    folds = find_folds(model, ids)
    done = awq(model, schemes, folds.folds, input_rows(model, ids, schemes), clip=False)
    assert (answer(model, ids) - expected).abs().max() < 1e-4 * expected.abs().max()
    assert error(model, ids, schemes, expected) < 0.8 * before
    assert all(one.after <= one.before for one in done.folds)
    assert any(one.after < 0.5 * one.before for one in done.folds)
    assert set(done.unscaled) == set(folds.without) - {"lm_head"}


@pytest.mark.parametrize("scheme", [INT4, Scheme(weight="int4", group=32), Scheme(weight="int8", group=32)], ids=str)
def test_clipped_weights_lie_on_the_grid(scheme):
    model, ids = made("llama"), windows(8)
    schemes = dict.fromkeys(linear_layers(model), scheme)
    awq(model, schemes, find_folds(model, ids).folds, input_rows(model, ids, schemes))
    for name, module in linear_layers(model).items():
        weight = weight_of(module)
        assert (quantized(weight, scheme).floats() - weight).abs().max() <= 1e-6 * weight.abs().max(), name


def test_ranges_are_chosen_by_what_the_inputs_weigh():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 96, generator=generator)
    inputs = torch.randn(200, 96, generator=generator) * torch.rand(96, generator=generator) ** 4
    own, plain = clipped(weight, INT4, inputs), quantized(weight, INT4).floats()
    wrong = [float((inputs @ (tried - weight).T).square().sum()) for tried in (own, plain)]
    assert wrong[0] < 0.95 * wrong[1]
    assert torch.equal(clipped(weight, INT4, inputs * 0), plain)


def test_factors():
    pair = Fold("norm", ("a",), torch.arange(3))
    inputs = torch.tensor([[4.0, -1.0, 0.0], [-4.0, 1.0, 0.0]])
    assert torch.equal(salience(pair, inputs, 0.0), torch.ones(3))
    assert torch.allclose(salience(pair, inputs, 1.0), torch.tensor([2.0, 0.5, 1.0]))  # 4 and 1 around 2; dead
    assert torch.equal(salience(pair, inputs * 0, 1.0), torch.ones(3))


def test_a_tied_head_is_neither_scaled_nor_rounded():
    model, ids = made("gpt2"), windows()
    before = model.lm_head.weight.clone()
    schemes = dict.fromkeys(linear_layers(model), INT4)
    done = awq(model, schemes, find_folds(model, ids).folds, input_rows(model, ids, schemes))
    assert torch.equal(model.lm_head.weight, before)
    assert "lm_head" in done.unscaled
