"""SmoothQuant and bias correction: the float model stays what it is, and its rounded self comes nearer to it."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from weight_models import answer, made, windows

from exporter.checkpoint.linear import linear_layers
from exporter.errors import BuildError
from exporter.quantization.bias_correction import correct_biases, mean_outputs
from exporter.quantization.folds import Fold, find_folds, fold
from exporter.quantization.input_rows import input_rows
from exporter.quantization.simulation import simulated
from exporter.quantization.smoothquant import inputs_after, smooth, smoothing
from exporter.quantization.statistics import collect, watched
from exporter.scheme import Scheme

STATIC = Scheme(weight="int8", input="static")


def statistics(model, ids):
    """(absmax, rows) of a model's linear layers."""
    found = collect(model, ids, lambda done, of: None)
    return {name: torch.tensor(one.absmax) for name, one in found.items()}, input_rows(model, ids, found)


def with_ranges(absmax):
    """Static int8 for every layer, its input over +-absmax."""
    return {
        name: STATIC.model_copy(update={"range": (-float(most.max()), float(most.max()))})
        for name, most in absmax.items()
        if name != "lm_head"
    }


def plant_outliers(model, ids):
    """Makes a few channels of every fold 60 times as large: what trained models have and random ones have not."""
    for one in find_folds(model, ids).folds:
        factors = torch.ones(one.channels)
        factors[::17] = 1 / 60
        fold(model, one, factors)


def static_error(model, ids, expected):
    schemes = with_ranges(statistics(model, ids)[0])
    with simulated(model, schemes):
        return float((answer(model, ids) - expected).square().mean() / expected.square().mean())


@pytest.mark.parametrize("alpha", [None, 0.5])
@pytest.mark.parametrize("name", ["tiny", "llama", "qwen2", "gpt2", "bert", "opt"])
def test_the_float_model_stays_and_its_static_int8_error_falls(name, alpha, tiny):
    if name == "tiny":
        model, ids = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval(), windows(vocabulary=2048)
    else:
        model, ids = made(name), windows()
    expected = answer(model, ids)
    plant_outliers(model, ids)
    before = static_error(model, ids, expected)
    fed = collect(model, ids, lambda done, of: None)
    absmax, rows = statistics(model, ids)
    done = smooth(model, dict.fromkeys(absmax, STATIC), find_folds(model, ids).folds, absmax, rows, alpha)
    told, seen = inputs_after(fed, done), collect(model, ids, lambda done, of: None)
    for layer, its in seen.items():
        foretold = told[layer]
        assert foretold.rows == its.rows
        for ours, theirs in ((foretold.low, its.low), (foretold.high, its.high), (foretold.squares, its.squares)):
            assert abs(ours - theirs).max() <= 1e-4 * abs(theirs).max()
        assert foretold.histogram.maximum == pytest.approx(its.histogram.maximum, rel=1e-4)
        assert foretold.histogram.minimum == pytest.approx(its.histogram.minimum, rel=1e-4)
        assert foretold.histogram.counts.sum() == its.histogram.counts.sum()
    assert (answer(model, ids) - expected).abs().max() < 1e-4 * expected.abs().max()
    assert static_error(model, ids, expected) < 0.5 * before
    if alpha is None:
        assert all(one.after <= one.before for one in done)
        assert any(one.after < 0.5 * one.before for one in done)
    else:
        assert all(one.alpha == alpha for one in done)


def test_the_papers_factors():
    pair = Fold("norm", ("a", "b"), torch.arange(4))
    weights = [torch.tensor([[1.0, -2.0, 0.0, 3.0]]), torch.tensor([[0.5, 1.0, 0.0, -4.0]])]
    factors = smoothing(pair, torch.tensor([16.0, 8.0, 5.0, 0.0]), weights, 0.5)
    assert torch.allclose(factors, torch.tensor([4.0, 2.0, 1.0, 1.0]))  # sqrt(16/1), sqrt(8/2), dead, dead
    assert torch.allclose(
        smoothing(pair, torch.tensor([16.0, 8.0, 5.0, 1.0]), weights, 1.0)[:2], torch.tensor([16.0, 8.0])
    )


def test_what_is_not_rounded_is_not_smoothed():
    model, ids = made("llama"), windows()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    absmax, rows = statistics(model, ids)
    folds = find_folds(model, ids).folds
    weight_only = dict.fromkeys(absmax, Scheme(weight="int4", group=32))
    assert smooth(model, weight_only | {"model.layers.0.mlp.up_proj": None}, folds, absmax, rows) == []
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_dead_channel_stays_finite():
    model, ids = made("llama"), windows()
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[3] = 0
        model.model.layers[0].mlp.up_proj.weight[5] = 0
        model.model.layers[1].mlp.down_proj.weight[:, 7] = 0
    expected = answer(model, ids)
    absmax, rows = statistics(model, ids)
    smooth(model, dict.fromkeys(absmax, STATIC), find_folds(model, ids).folds, absmax, rows, 0.5)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert (answer(model, ids) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_rows_are_those_that_the_layers_are_fed():
    model, ids = made("llama"), windows(8)
    names = list(linear_layers(model))
    rows = input_rows(model, ids, names, rows=64)
    assert {len(one) for one in rows.values()} == {64}
    assert rows[names[0]] is rows[names[1]]  # q and k
    seen = {}
    with torch.no_grad(), watched({names[3]: linear_layers(model)[names[3]]}, seen.__setitem__):
        model(input_ids=ids[:1])
    assert torch.equal(rows[names[3]][0], seen[names[3]][0, 0])
    with torch.no_grad():
        model.model.embed_tokens.weight[int(ids[0, 0])] = torch.nan
    with pytest.raises(BuildError, match="is fed NaN or Inf"):
        input_rows(model, ids, names)


@pytest.mark.parametrize("name", ["bert", "gpt2", "qwen2"])
def test_bias_correction_takes_the_mean_error_away(name):
    model, ids = made(name), windows()
    schemes = dict.fromkeys(
        [layer for layer in linear_layers(model) if layer != "lm_head"], Scheme(weight="int4", input="dynamic")
    )
    expected = mean_outputs(model, ids, schemes)
    with simulated(model, schemes):
        wrong = mean_outputs(model, ids, schemes)
    weights = {key: value.clone() for key, value in model.state_dict().items() if value.dim() == 2}
    done = correct_biases(model, ids, schemes, expected)
    with simulated(model, schemes):
        mended = mean_outputs(model, ids, schemes)
    for layer in done.layers:
        largest = expected[layer].abs().max()
        assert (mended[layer] - expected[layer]).abs().max() < 1e-3 * largest
        assert (wrong[layer] - expected[layer]).abs().max() > 1e-2 * largest
    assert set(done.layers) | set(done.without_bias) == set(schemes)
    # Qwen2's q, k and v have a bias; the other four of a block have none.
    assert len(done.without_bias) == (8 if name == "qwen2" else 0)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in weights.items())


def test_bias_correction_refuses_nan():
    model, ids = made("bert"), windows()
    expected = mean_outputs(model, ids, linear_layers(model))
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[:] = torch.nan
    with pytest.raises(BuildError, match="gives NaN or Inf"):
        correct_biases(model, ids, dict.fromkeys(expected, Scheme(weight="int8")), expected)
