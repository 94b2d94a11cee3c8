"""Neurons and heads that a text shows to matter least go: which, in what shape, and the model that is left."""

import json
import re

import pytest
import torch
import transformers as t
from shaped import FAMILIES, GROUPED, VOCABULARY, answers, family, reloaded, same, windows

from exporter.checkpoint.linear import linear_layers, weight_of
from exporter.errors import BuildError, JobError
from exporter.stages.prune.heads import prune_heads
from exporter.stages.prune.width import prune_width

READERS = {"gpt2": r"mlp\.c_proj$", "bert": r"layer\.\d+\.output\.dense$", "bert-classifier": r"\d+\.output\.dense$"}
WIDTHS = {"gpt2": "n_inner"}


def readers(model, kind):
    pattern = re.compile(READERS.get(kind, r"down_proj$"))
    return {name: one for name, one in linear_layers(model).items() if pattern.search(name)}


@pytest.mark.parametrize("kind", FAMILIES)
def test_neurons_that_do_nothing_go_first(kind, tmp_path):
    model = family(kind)
    for number, layer in enumerate(readers(model, kind).values()):
        weight_of(layer)[:, number : number + 128 : 2] = 0  # others in each layer
    expected = answers(model)
    record = prune_width(model, 1 / 3, windows())
    assert (record["before"], record["after"], record["layers"]) == (192, 128, 4)
    assert record["importance_dropped"] == [0.0] * 4
    assert same(answers(model), expected)
    assert getattr(model.config, WIDTHS.get(kind, "intermediate_size")) == 128
    assert {weight_of(layer).shape[1] for layer in readers(model, kind).values()} == {128}
    assert record["parameters_before"] - record["parameters_after"] >= 4 * 64 * 2 * 48
    json.dumps(record)
    reloaded(model, tmp_path)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_what_is_fed_decides_as_well_as_the_weight(kind):
    model, ids = family(kind), windows()
    inputs = {}
    hooks = [
        layer.register_forward_pre_hook(lambda module, given, name=name: inputs.update({name: given[0]}))
        for name, layer in readers(model, kind).items()
    ]
    answers(model, ids)
    for hook in hooks:
        hook.remove()
    expected = []
    for name, layer in readers(model, kind).items():
        added = inputs[name].double().reshape(-1, 192).square().mean(0) * weight_of(layer).double().square().sum(0)
        expected.append(weight_of(layer)[:, added.topk(96).indices.sort().values].clone())
    prune_width(model, 0.5, ids)
    kept = [weight_of(layer) for layer in readers(model, kind).values()]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(kept, expected, strict=True))


@pytest.mark.parametrize(
    ("width", "share", "left"), [(192, 0.2, 160), (192, 0.99, 32), (192, 0.1, 160), (24, 0.25, 18), (40, 0.3, 32)]
)
def test_a_multiple_of_32_neurons_stays(width, share, left):
    config = t.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=width, num_hidden_layers=1, num_attention_heads=2
    )
    model = t.LlamaForCausalLM(config).eval()
    assert prune_width(model, share, windows())["after"] == left


@pytest.mark.parametrize("method", [prune_width, prune_heads])
def test_the_same_again(method):
    one, other = family("qwen3"), family("qwen3")
    assert method(one, 0.4, windows()) == method(other, 0.4, windows())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("kind", GROUPED)
def test_heads_that_do_nothing_go_first(kind, tmp_path):
    model = family(kind)
    size = 8 if kind == "phi3" else 16
    outputs = [one for name, one in linear_layers(model).items() if name.endswith("o_proj")]
    gone = [0, 2, 1, 1]
    for group, layer in zip(gone, outputs, strict=True):
        weight_of(layer)[:, group * 2 * size : (group + 1) * 2 * size] = 0  # two query heads to a group
    expected = answers(model)
    record = prune_heads(model, 1 / 3, windows())
    assert record["dropped"] == [[group] for group in gone]
    assert (record["before"], record["after"]) == (3, 2)
    assert (record["heads_before"], record["heads_after"], record["head_dim"]) == (6, 4, size)
    assert same(answers(model), expected)
    config = model.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, size)
    json.dumps(record)
    reloaded(model, tmp_path)


def test_heads_stay_where_the_family_does_not_take_their_number():
    """Llama's configuration refuses a number of heads that does not divide the hidden size: 80 by 6, 7 or 9."""
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 80,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "head_dim": 8,
    }
    model = t.LlamaForCausalLM(t.LlamaConfig(**sizes, num_attention_heads=10, num_key_value_heads=10)).eval()
    assert prune_heads(model, 0.4, windows())["after"] == 8
    with pytest.raises(BuildError, match=r"takes 1, 2, 4, 5: give heads:0\.38$"):
        prune_heads(model, 0.2, windows())


def test_both_after_one_another(tmp_path):
    model = family("qwen3")
    prune_width(model, 0.3, windows())
    prune_heads(model, 0.4, windows())
    again = reloaded(model, tmp_path)
    assert again.config.intermediate_size == 128
    assert again.config.num_key_value_heads == 2
    assert again.lm_head.weight is again.model.embed_tokens.weight


def mixture():
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    return t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(**sizes, **heads, num_experts=4, moe_intermediate_size=32)).eval()


def albert():
    return t.AlbertModel(t.AlbertConfig(vocab_size=VOCABULARY, hidden_size=32, num_attention_heads=4)).eval()


def olmo2():
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return t.Olmo2ForCausalLM(t.Olmo2Config(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()


@pytest.mark.parametrize(
    ("method", "make", "share", "says"),
    [
        (prune_width, mixture, 0.2, "Qwen3MoeForCausalLM is a mixture of experts"),
        (
            prune_width,
            albert,
            0.2,
            "AlbertModel: pruning the width knows the MLP of no layer; it knows those of Llama, ",
        ),
        (prune_heads, lambda: family("gpt2"), 0.5, "GPT2LMHeadModel takes the size of a head as hidden_size / num_att"),
        (prune_heads, lambda: family("bert"), 0.5, "BertModel takes the size of a head as hidden_size / num_attention"),
        (prune_heads, olmo2, 0.5, "Olmo2ForCausalLM: q_norm takes the mean over all heads"),
    ],
)
def test_families_that_are_refused(method, make, share, says):
    with pytest.raises(BuildError, match=f"^{re.escape(says)}"):
        method(make(), share, windows())


@pytest.mark.parametrize(
    ("method", "share", "says"),
    [
        (prune_width, 0.0, "--prune width:0: the share to drop lies between 0 and 1"),
        (prune_heads, 1.0, "--prune heads:1: the share to drop lies between 0 and 1"),
        (prune_width, 0.05, "--prune width:0.05 of 192 neurons drops none: they go by 32; give width:0.17 or more"),
        (prune_heads, 0.1, "--prune heads:0.1 of 3 groups of heads drops none; give heads:0.33 or more"),
    ],
)
def test_shares_that_are_wrong(method, share, says):
    model = family("llama")
    expected = answers(model)
    with pytest.raises(JobError, match=f"^{re.escape(says)}"):
        method(model, share, windows())
    assert torch.equal(answers(model), expected)
