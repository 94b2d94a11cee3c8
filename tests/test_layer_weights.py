"""Parameters and weights in files, of a model with a tied head, biases and weights that lie the other way round."""

from functools import partial

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from exporter.checkpoint.linear import linear_layers, weight_of
from exporter.quantization.layer_weights import (
    LayerWeights,
    load_parameters,
    names_of_weights,
    save_parameters,
    save_weights,
)
from exporter.quantization.simulation import simulated
from exporter.scheme import Scheme

INT8 = Scheme(weight="int8")


def made(seed):
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2)).eval()


@pytest.fixture
def model():
    return made(0)


def save_all(model, folder):
    save_parameters(model, folder, dict(model.named_parameters()))


def test_parameters_are_put_back_ties_included(model, tmp_path):
    save_all(model, tmp_path)
    other = made(1)
    load_parameters(other, tmp_path)
    assert other.lm_head.weight is other.transformer.wte.weight
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in other.state_dict().items())


def test_weights_are_read_as_outputs_by_inputs(model, tmp_path):
    save_parameters(model, tmp_path, names_of_weights(model))
    weights = LayerWeights(model, tmp_path)
    layers = linear_layers(model)
    assert weights.keys() == layers.keys()
    assert "lm_head" in weights
    assert all(torch.equal(weights[name], weight_of(layer)) for name, layer in layers.items())


def test_only_what_was_changed_is_kept_and_comes_first(model, tmp_path):
    name = "transformer.h.0.attn.c_proj"
    save_parameters(model, tmp_path / "own", names_of_weights(model))
    other = made(0)
    other.get_submodule(name).weight.data.mul_(2)
    save_parameters(other, tmp_path / "changed", [f"{name}.weight"])
    load_parameters(model, tmp_path / "changed")
    expected = other.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    weights = LayerWeights(model, tmp_path / "changed", tmp_path / "own")
    assert all(torch.equal(weights[name], weight_of(layer)) for name, layer in linear_layers(other).items())


def test_some_weights_of_their_own(model, tmp_path):
    name = "transformer.h.1.mlp.c_fc"
    save_weights(model, tmp_path, {name: partial(torch.full, (128, 32), 3.0)})
    weights = LayerWeights(model, tmp_path)
    assert list(weights) == [name]
    assert "lm_head" not in weights
    assert weights[name].shape == (128, 32)


def test_what_was_simulated_is_put_back_from_the_file(model, tmp_path):
    save_all(model, tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.arange(16)[None]
    schemes = dict.fromkeys(linear_layers(model), INT8)
    with torch.no_grad(), simulated(model, schemes):
        expected = model(input_ids=ids).logits
    with torch.no_grad(), simulated(model, schemes, originals=LayerWeights(model, tmp_path)):
        assert torch.equal(model(input_ids=ids).logits, expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
