"""The layers that change the hidden state least go, and the model that is left is an ordinary one."""

import json
import re

import pytest
import torch
import transformers as t
from shaped import FAMILIES, VOCABULARY, answers, family, reloaded, same, windows

from exporter.checkpoint.linear import linear_layers
from exporter.errors import BuildError, JobError
from exporter.stages.prune.depth import prune_depth

_OUTPUTS = re.compile(r"\.(\d+)\.(.*\.)?(o_proj|down_proj|c_proj|output\.dense)$")


def silence(model, number):
    """Lets a layer add nothing to the hidden state."""
    for name, layer in linear_layers(model).items():
        match = _OUTPUTS.search(name)
        if match and int(match[1]) == number:
            layer.weight.data.zero_()
            if layer.bias is not None:
                layer.bias.data.zero_()


@pytest.mark.parametrize("kind", FAMILIES)
def test_layers_that_do_nothing_go_first(kind, tmp_path):
    model = family(kind)
    for number in (1, 2):
        silence(model, number)
    expected = answers(model)
    record = prune_depth(model, 2, windows())
    assert record["dropped"] == [1, 2]
    assert max(record["influence"][1:3]) < 1e-6 < min(record["influence"][0], record["influence"][3])
    assert same(answers(model), expected)
    assert (record["before"], record["after"], model.config.num_hidden_layers) == (4, 2, 2)
    assert len(record["history"]) == 1
    assert record["history"][0].startswith("dropped 2 of 4 layers, number 1, 2: those that change the hidden state ")
    json.dumps(record)
    again = reloaded(model, tmp_path)
    assert [one.layer_idx for one in again.modules() if hasattr(one, "layer_idx")] == [
        one.layer_idx for one in model.modules() if hasattr(one, "layer_idx")
    ]


def test_the_lists_of_a_configuration_follow():
    gemma, qwen = family("gemma3"), family("qwen3")
    for model in (gemma, qwen):
        silence(model, 1)
        prune_depth(model, 1, windows())
    assert gemma.config.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]
    assert qwen.config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    assert qwen.config.max_window_layers == 1
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    smol = t.SmolLM3ForCausalLM(t.SmolLM3Config(**sizes, **heads, pad_token_id=0, no_rope_layers=[1, 0, 1, 1])).eval()
    silence(smol, 2)
    prune_depth(smol, 1, windows())
    assert smol.config.no_rope_layers == [1, 0, 1]


def test_lists_of_layers_numbers_follow(tmp_path):
    """A mixture of experts, loaded from a checkpoint, whose weights have other names there than in memory."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": [0, 3]}
    torch.manual_seed(0)
    t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(**sizes, **heads, **experts)).save_pretrained(tmp_path / "whole")
    model = t.Qwen3MoeForCausalLM.from_pretrained(tmp_path / "whole").eval()
    silence(model, 0)
    record = prune_depth(model, 1, windows())
    kept = [number for number in range(4) if number not in record["dropped"]]
    assert model.config.mlp_only_layers == [place for place, number in enumerate(kept) if number in (0, 3)]
    reloaded(model, tmp_path / "pruned")


def test_influence_is_one_minus_the_cosine():
    model, ids = family("llama"), windows()
    with torch.no_grad():
        states = model.model(input_ids=ids, output_hidden_states=True).hidden_states
    record = prune_depth(model, 1, ids)
    for number in range(3):  # the last of the states has gone through the norm
        cosine = torch.nn.functional.cosine_similarity(states[number], states[number + 1], dim=-1)
        assert record["influence"][number] == pytest.approx(float(1 - cosine.mean()), abs=1e-5)


def test_the_same_again():
    one, other = family("gpt2"), family("gpt2")
    assert prune_depth(one, 3, windows()) == prune_depth(other, 3, windows())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_family_whose_layers_know_their_place():
    model = family("gpt2", scale_attn_by_inverse_layer_idx=True)
    silence(model, 0)
    with pytest.raises(BuildError, match=r"GPT2LMHeadModel with 3 of 4 layers does not compute what it did .*config"):
        prune_depth(model, 1, windows())


@pytest.mark.parametrize("count", [0, -1, 4, 5])
def test_counts_that_are_wrong(count):
    with pytest.raises(JobError, match=f"^--prune depth:{count}: of 4 layers 1 to 3 can go$"):
        prune_depth(family("llama"), count, windows())


def test_models_that_are_refused():
    albert = t.AlbertModel(t.AlbertConfig(vocab_size=VOCABULARY, hidden_size=32, num_attention_heads=4)).eval()
    with pytest.raises(
        BuildError, match=r"^AlbertModel: pruning the depth looks for one list of 12 layers and finds no"
    ):
        prune_depth(albert, 1, windows())
    t5 = t.T5ForConditionalGeneration(t.T5Config(vocab_size=VOCABULARY, d_model=16, d_ff=16, num_layers=2)).eval()
    with pytest.raises(BuildError, match=r"^T5ForConditionalGeneration has an encoder and a decoder"):
        prune_depth(t5, 1, windows())
