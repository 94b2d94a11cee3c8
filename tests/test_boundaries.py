"""Small random models with each kind of boundary: graphs that are right beyond it, and one that is refused."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from exporter import Job
from exporter.checkpoint.opened import open_checkpoint
from exporter.errors import BuildError
from exporter.measure.lengths import Length, Lengths, compare_lengths, cuts_of, positions, shape_of, told_of
from exporter.pipeline.lengths import lengths_of
from exporter.targets.onnx_graph.session import OnnxDecoder, OnnxRunner
from exporter.targets.onnx_graph.traced import trace_causal_lm, trace_encoder
from exporter.types import FEATURES, GENERATION

VOCABULARY = 96
_SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "pad_token_id": 0,
}  # fmt: skip
_DECODER = _SIZES | {"num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
_FACTORS = {"short_factor": [1 + 0.05 * i for i in range(4)], "long_factor": [1.5 + 0.6 * i for i in range(4)]}


def mistral():
    return transformers.MistralForCausalLM(
        transformers.MistralConfig(**_DECODER, max_position_embeddings=256, sliding_window=16)
    )


def gemma2():  # a window in every second layer
    config = transformers.Gemma2Config(**_DECODER, head_dim=8, max_position_embeddings=256, sliding_window=16)
    return transformers.Gemma2ForCausalLM(config)


def phimoe():
    rope = {"rope_type": "longrope", "short_mscale": 1.1, "long_mscale": 1.2, "original_max_position_embeddings": 24}
    config = transformers.PhimoeConfig(
        **_DECODER, max_position_embeddings=256, sliding_window=None, num_local_experts=2,
        original_max_position_embeddings=24, rope_scaling=rope | _FACTORS,
    )  # fmt: skip
    return transformers.PhimoeForCausalLM(config)


def dynamic():
    rope = {"rope_type": "dynamic", "factor": 4.0}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**_DECODER, max_position_embeddings=24, rope_scaling=rope)
    )


def bigbird():
    config = transformers.BigBirdConfig(**_SIZES, max_position_embeddings=256, block_size=4, num_random_blocks=1)
    return transformers.BigBirdModel(config, add_pooling_layer=False)


def modernbert():
    sizes = _SIZES | {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    config = transformers.ModernBertConfig(**sizes, max_position_embeddings=256, local_attention=16)
    return transformers.ModernBertModel(config)


RIGHT = {
    mistral: "sliding_window 16",
    gemma2: "sliding_window 16",
    modernbert: "local_attention 16",
    phimoe: "original_max_position_embeddings 24",
    dynamic: "dynamic rope beyond 24 positions",
}


def compared(made, folder):
    """(proven, figure) of the traced graph of a model beside the model itself."""
    torch.manual_seed(0)
    model = made()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    task = GENERATION if made in (mistral, gemma2, phimoe, dynamic) else FEATURES
    source = SimpleNamespace(config=model.config.to_dict(), checkpoint=SimpleNamespace(task=task), max_length=None)
    graph = folder / "model.onnx"
    trace_causal_lm(folder, graph) if task == GENERATION else trace_encoder(folder, task, graph)
    rng, told = np.random.default_rng(0), []
    for one in lengths_of(Job(model="it", output=folder), source)["lengths"]:
        boundary, tokens = one["boundary"], one["tokens"]
        near, far = (rng.integers(3, VOCABULARY, shape) for shape in (shape_of(boundary, tokens), (1, tokens)))
        at, cuts = positions(boundary, tokens, task), cuts_of(boundary, tokens, one["switch"], task)
        length = Length(one["name"], boundary, near, far, at, cuts)
        told.append(told_of(partial(open_checkpoint, folder, task, 1), length, task))
    runner = OnnxDecoder if task == GENERATION else OnnxRunner
    return compare_lengths(partial(runner, graph, 1), Lengths(8, tuple(told)), task, lambda done, total: None)


@pytest.mark.parametrize("made", RIGHT, ids=lambda made: made.__name__)
def test_a_right_graph_is_proven_beyond_it(made, tmp_path):
    proven, figure = compared(made, tmp_path)
    assert figure.value < 1, figure
    assert figure.detail.startswith(f"proven up to {proven} tokens, beyond ")
    assert RIGHT[made] in figure.detail
    assert proven > 24


def test_a_graph_that_would_be_frozen_below_it_is_refused(tmp_path):
    """BigBird attends to a text as a whole that is short, and says so to itself for good."""
    with pytest.raises(BuildError, match="was decided at the traced length") as refused:
        compared(bigbird, tmp_path)
    assert "modeling_big_bird.py" in str(refused.value)
