"""Where channels can be scaled: found without names, proven, and the model unharmed."""

import pytest
import torch
from weight_models import answer, made, windows

from exporter.checkpoint.linear import linear_layers
from exporter.quantization.folds import find_folds, fold

BLOCK = "model.layers.0."
GATED = {
    ("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.v_proj", "self_attn.o_proj"),
    ("post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj"),
    ("mlp.up_proj", "mlp.down_proj"),
}
EXPECTED = {
    "llama": (BLOCK, GATED),
    "qwen2": (BLOCK, GATED),
    "gemma2": (BLOCK, {(pair[0].replace("post_attention", "pre_feedforward"), *pair[1:]) for pair in GATED}),
    "phi3": (
        BLOCK,
        {
            ("input_layernorm", "self_attn.qkv_proj"),
            ("self_attn.qkv_proj", "self_attn.o_proj"),
            ("post_attention_layernorm", "mlp.gate_up_proj"),
            ("mlp.gate_up_proj", "mlp.down_proj"),
        },
    ),
    # GELU lies between the two layers of its feed-forward.
    "gpt2": (
        "transformer.h.0.",
        {("ln_1", "attn.c_attn"), ("attn.c_attn", "attn.c_proj"), ("ln_2", "mlp.c_fc")},
    ),
    # Its norms feed the residual too.
    "bert": ("encoder.layer.0.", {("attention.self.value", "attention.output.dense")}),
    # ReLU.
    "opt": (
        "model.decoder.layers.0.",
        {
            ("self_attn_layer_norm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("self_attn.v_proj", "self_attn.out_proj"),
            ("final_layer_norm", "fc1"),
            ("fc1", "fc2"),
        },
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_folds_of_a_block(name):
    model, ids = made(name), windows()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = find_folds(model, ids)
    prefix, expected = EXPECTED[name]
    here = [(one.source, *one.layers) for one in found.folds if one.source.startswith(prefix)]
    assert {frozenset(part.removeprefix(prefix) for part in parts) for parts in here} == set(map(frozenset, expected))
    assert len(here) == len(expected)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    reached = {layer for one in found.folds for layer in one.layers}
    assert reached | set(found.without) == set(linear_layers(model))
    assert not reached & set(found.without)


@pytest.mark.parametrize("name", EXPECTED)
def test_all_folds_together_leave_the_answer_as_it_is(name):
    model, ids = made(name), windows()
    before = answer(model, ids)
    generator = torch.Generator().manual_seed(2)
    for one in find_folds(model, ids).folds:
        fold(model, one, torch.rand(one.channels, generator=generator) * 3 + 0.2)
    assert (answer(model, ids) - before).abs().max() < 1e-4 * before.abs().max()


def test_a_tied_head_is_left_alone():
    found = find_folds(made("gemma2"), windows())  # its embedding is its head
    assert "lm_head" in found.without


def test_a_layer_of_its_own_kind_that_fails_does_not_spoil_the_others():
    model = made("llama")
    first = model.model.layers[0].mlp
    first.act_fn = torch.nn.Identity()
    first.up_proj.register_forward_hook(lambda module, inputs, output: output.tanh())  # no longer linear
    layers = {layer for one in find_folds(model, windows()).folds for layer in one.layers}
    assert "model.layers.1.mlp.down_proj" in layers
    # With no activation the gate takes the factors as well as the up projection would.
    [fold_of_first] = [
        one for one in find_folds(model, windows()).folds if "model.layers.0.mlp.down_proj" in one.layers
    ]
    assert fold_of_first.source == "model.layers.0.mlp.gate_proj"


def test_channels_that_share_a_factor():
    found = find_folds(made("llama"), windows())
    values = next(one for one in found.folds if one.source.endswith("v_proj"))
    assert values.channels == 32  # two key-value heads of 16
    inputs = torch.zeros(64)
    inputs[3], inputs[16 + 3], inputs[32 + 3] = 1.0, 5.0, 2.0  # heads 0 and 1 share the first
    shared = values.per_channel(inputs)
    assert (shared[3], shared[16 + 3], shared.sum()) == (5.0, 2.0, 7.0)
