"""Traced graphs before and after RMSNormalization and RotaryEmbedding are operators: the same answers, fewer nodes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import transformers as t

from exporter.targets.onnx_graph import fused_operators
from exporter.targets.onnx_graph.attention_operator import KERNEL_SIZES
from exporter.targets.onnx_graph.traced import trace_causal_lm

VOCABULARY = 120
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"vocab_size": VOCABULARY, "max_position_embeddings": 128, "pad_token_id": 0}
SIZES |= {"bos_token_id": 1, "eos_token_id": 2}
SHARED = SIZES | {"num_key_value_heads": 2}
# Norms and rotations of two layers: the norms of each head (Qwen3), of a part of the head (GPT-NeoX, Phi-3), a scale
# of 1 + weight (Gemma), norms after the attention (OLMo 2).
FAMILIES = {
    "llama": (t.LlamaConfig(**SHARED), 5, 4),
    "qwen3": (t.Qwen3Config(**SHARED, head_dim=16), 9, 4),
    "phi3": (t.Phi3Config(**SHARED), 5, 4),
    "gemma": (t.GemmaConfig(**SHARED, head_dim=16), 5, 4),
    "olmo2": (t.Olmo2Config(**SHARED), 9, 4),
    "gpt-neox": (t.GPTNeoXConfig(**SIZES), 0, 4),
    "gpt2": (t.GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=128), 0, 0),
}


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """traced(family): a folder with model.onnx, whose norms have weights that are not all one."""
    made = {}

    def get(family):
        if family not in made:
            torch.manual_seed(0)
            model, folder = t.AutoModelForCausalLM.from_config(FAMILIES[family][0]), tmp_path_factory.mktemp(family)
            with torch.no_grad():
                for weight in model.parameters():
                    weight.add_(torch.randn_like(weight) * 0.1)
            model.save_pretrained(folder)
            trace_causal_lm(folder, folder / "model.onnx", attention=KERNEL_SIZES)
            made[family] = folder
        return made[family]

    return get


def simplified(folder, lacking=()):
    model = ir.load(folder / "model.onnx")
    before = len(model.graph)
    fused_operators.simplify(model, lacking)
    ir.save(model, folder / "simplified.onnx")
    onnx.checker.check_model(folder / "simplified.onnx", full_check=True)
    return model, before


def answers(path, seed=0):
    """Every output on a batch of two texts, one of them padded, behind a cache of three tokens."""
    random = np.random.default_rng(seed)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {}
    for value in session.get_inputs():
        if value.name == "attention_mask":
            feeds[value.name] = np.array([[1] * 8, [0, 0] + [1] * 6])
        elif value.name == "position_ids":
            feeds[value.name] = np.array([[3, 4, 5, 6, 7], [1, 2, 3, 4, 5]])
        elif value.name == "input_ids":
            feeds[value.name] = random.integers(VOCABULARY, size=(2, 5))
        else:
            feeds[value.name] = random.standard_normal((2, value.shape[1], 3, value.shape[3]), dtype=np.float32)
    return session.run(None, feeds)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_operators_are_found_and_the_answers_stay(traced, family):
    _, norms, rotations = FAMILIES[family]
    model, before = simplified(traced(family))
    found = Counter(node.op_type for node in model.graph)
    assert (found["RMSNormalization"], found["RotaryEmbedding"]) == (norms, rotations)
    assert len(model.graph) < before / 2
    for old, new in zip(
        answers(traced(family) / "model.onnx"), answers(traced(family) / "simplified.onnx"), strict=True
    ):
        assert np.abs(new - old).max() < 1e-5 * np.abs(old).max()


def test_operators_have_their_modules_names(traced):
    model, _ = simplified(traced("llama"))
    names = [node.name for node in model.graph if node.op_type in fused_operators.OPERATORS]
    assert all(name.startswith("/model/") for name in names)
    assert len(set(names)) == len(names)


def test_what_a_parser_lacks_stays_spelled_out(traced):
    model, _ = simplified(traced("llama"), lacking={"RotaryEmbedding"})
    found = Counter(node.op_type for node in model.graph)
    assert (found["RMSNormalization"], found["RotaryEmbedding"], found["Neg"]) == (5, 0, 4)


def test_another_exponent_or_another_half_is_no_such_operator(traced):
    """A graph that only looks like it: the cube's mean, and heads that are turned at a third."""
    model = ir.load(traced("llama") / "model.onnx")
    for node in model.graph:
        if node.op_type == "Pow":
            node.replace_input_with(1, _scalar(model, np.float32(3)))
        if node.op_type == "Div" and node.inputs[0].producer().op_type == "Gather":
            node.replace_input_with(1, _scalar(model, np.int64(3)))
    fused_operators.simplify(model)
    found = Counter(node.op_type for node in model.graph)
    assert (found["RMSNormalization"], found["RotaryEmbedding"], found["Neg"]) == (0, 0, 4)


def test_operators_written_out_are_the_same(traced):
    model, _ = simplified(traced("phi3"))
    fused_operators.write_out(model)
    assert not [node for node in model.graph if node.op_type == "RotaryEmbedding"]
    ir.save(model, traced("phi3") / "written.onnx")
    pairs = zip(answers(traced("phi3") / "simplified.onnx"), answers(traced("phi3") / "written.onnx"), strict=True)
    assert all(np.abs(new - old).max() < 1e-5 * np.abs(old).max() for old, new in pairs)


def _scalar(model, number):
    value = ir.Value(name=f"number_{len(model.graph.initializers)}")
    value.const_value = ir.Tensor(np.asarray(number), name=value.name)
    value.dtype, value.shape = value.const_value.dtype, ir.Shape([])
    model.graph.register_initializer(value)
    return value
