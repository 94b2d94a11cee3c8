"""Mixtures of experts as graphs: against PyTorch at any number of tokens, each expert's matrices its own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import transformers

from exporter.scheme import Scheme
from exporter.targets.onnx.quantize import quantize_by_rule
from exporter.targets.onnx_graph.linear import find_matrices
from exporter.targets.onnx_graph.nodes import finish
from exporter.targets.onnx_graph.schemes import quantize
from exporter.targets.onnx_graph.traced import trace_causal_lm

INT8, DYNAMIC = Scheme(weight="int8", group=32), Scheme(weight="int8", input="dynamic")
WORDS, EXPERTS, HIDDEN, INNER = 97, 4, 64, 96
_SIZES: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": HIDDEN, "intermediate_size": INNER, "moe_intermediate_size": INNER,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
    "num_local_experts": EXPERTS, "num_experts": EXPERTS, "num_experts_per_tok": 2, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_DEEPSEEK: dict[str, Any] = {
    "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "qk_nope_head_dim": 16, "n_routed_experts": EXPERTS, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {  # by the name of the class in transformers
    "Mixtral": {"sliding_window": None},
    "Qwen3Moe": {"head_dim": 16},
    "Olmoe": {},
    "GraniteMoe": {},
    "DeepseekV3": _DEEPSEEK,
    "Phimoe": {"sliding_window": None},
    "GptOss": {"head_dim": 16, "sliding_window": 16},  # with biases, stacked [experts, inputs, outputs], interleaved
}


def made(family: str, folder: Path, **more: Any) -> Any:
    """A random model whose experts differ, saved to `folder`."""
    kind = getattr(transformers, f"{family}ForCausalLM")
    torch.manual_seed(0)
    model = kind(kind.config_class(**{**_SIZES, **FAMILIES[family], **more})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.12) if parameter.ndim >= 2 else parameter.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return model


class Graph:
    """A session on a traced decoder without a past."""

    def __init__(self, model: Path | bytes) -> None:
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

    def __call__(self, ids: Any) -> Any:
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        for item in self.session.get_inputs():
            if item.name == "position_ids":
                feeds[item.name] = np.broadcast_to(np.arange(ids.shape[1]), ids.shape).copy()
            elif item.name not in feeds:
                feeds[item.name] = np.zeros((len(ids), item.shape[1], 0, item.shape[3]), np.float32)
        return self.session.run(["logits"], feeds)[0]


def ids_of(batch: int, tokens: int) -> Any:
    return np.random.default_rng(tokens).integers(3, WORDS, (batch, tokens))


def answer_of(model: Any, ids: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids), use_cache=False).logits.numpy()


def expert_matrices(graph: ir.Graph) -> dict[str, tuple[int, ...]]:
    return {
        name: value.const_value.shape.numpy()
        for name, value in graph.initializers.items()
        if ".experts." in name and "bias" not in name
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_answer_as_torch_does(family, tmp_path):
    model = made(family, tmp_path)
    path = tmp_path / "model.onnx"
    trace_causal_lm(tmp_path, path)
    graph = Graph(path)
    for batch, tokens in ((1, 1), (1, 2), (2, 1), (3, 7), (2, 50)):  # some experts have no token at all
        ids = ids_of(batch, tokens)
        assert np.abs(graph(ids) - answer_of(model, ids)).max() < 1e-5
    layers = 1 if family == "DeepseekV3" else 2  # whose first layer is dense
    matrices = expert_matrices(ir.load(path).graph)  # a Gemm, of those with biases, takes them turned
    assert Counter(map(frozenset, matrices.values())) == dict.fromkeys(
        (frozenset({HIDDEN, 2 * INNER}), frozenset({INNER, HIDDEN})), EXPERTS * layers
    )
    stacked = [tensor.name for tensor in onnx.load(path).graph.initializer if len(tensor.dims) > 2]
    assert not stacked
    assert path.stat().st_size < sum(weight.numel() for weight in model.parameters()) * 4 * 1.03 + 500_000


def test_torch_export_has_them_too(tmp_path):
    model = made("GptOss", tmp_path, num_hidden_layers=1)
    trace_causal_lm(tmp_path, tmp_path / "model.onnx", dynamo=True)
    graph = Graph(tmp_path / "model.onnx")
    for tokens in (1, 9):
        assert np.abs(graph(ids_of(2, tokens)) - answer_of(model, ids_of(2, tokens))).max() < 1e-5
    assert len(expert_matrices(ir.load(tmp_path / "model.onnx").graph)) == 2 * EXPERTS


def test_an_expert_that_no_token_chose_answers_nothing(tmp_path):
    model = made("Mixtral", tmp_path)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.experts.down_proj[3] = torch.nan
    model.save_pretrained(tmp_path)
    trace_causal_lm(tmp_path, tmp_path / "model.onnx")
    every = [np.array([[number]]) for number in range(3, WORDS)]
    ids = next(ids for ids in every if np.isfinite(answer_of(model, ids)).all())
    assert not np.isfinite(answer_of(model, np.concatenate(every))).all()
    assert np.abs(Graph(tmp_path / "model.onnx")(ids) - answer_of(model, ids)).max() < 1e-5


@pytest.mark.parametrize("precision", ["int8-weight", "int8-dynamic", "int4-weight"])
def test_a_precision_quantizes_their_matrices(precision, tmp_path):
    made("Mixtral", tmp_path)
    trace_causal_lm(tmp_path, tmp_path / "model.onnx")
    graph = ir.load(tmp_path / "model.onnx")
    wide = set(expert_matrices(graph.graph))
    assert {str(matrix.value.name) for matrix in find_matrices(graph)} >= wide
    assert quantize_by_rule(graph, precision, decoder=True) == []
    assert wide.isdisjoint(graph.graph.initializers)
    opened = Graph(ir.to_proto(graph).SerializeToString())
    for tokens in (1, 30):  # one token leaves two experts without any
        assert np.isfinite(opened(ids_of(1, tokens))).all()


@pytest.mark.parametrize("scheme", [INT8, DYNAMIC], ids=str)
def test_quantized_experts_answer_as_the_float_ones_do(scheme, tmp_path):
    """The experts alone: what else is rounded moves a token from one expert to another."""
    model = made("Mixtral", tmp_path, num_hidden_layers=1)
    trace_causal_lm(tmp_path, tmp_path / "model.onnx")
    graph = ir.load(tmp_path / "model.onnx")
    for matrix in find_matrices(graph):
        if ".experts." in str(matrix.value.name):
            quantize(graph, matrix, scheme)
    finish(graph)
    opened = Graph(ir.to_proto(graph).SerializeToString())
    for tokens in (1, 30):
        wanted = answer_of(model, ids_of(1, tokens))
        assert np.abs(opened(ids_of(1, tokens)) - wanted).mean() < 0.03 * wanted.std()


def test_no_value_is_as_large_as_a_tokens_own_weights(tmp_path):
    """batched_mm gathered [tokens * experts of each, outputs, inputs]: every value that a run makes is looked at."""
    made("Mixtral", tmp_path)
    path = tmp_path / "model.onnx"
    trace_causal_lm(tmp_path, path)
    proto = onnx.load(path)
    known = {value.name for value in proto.graph.output}
    made_here = [name for node in proto.graph.node for name in node.output if name and name not in known]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made_here if "/mlp/experts/" in name)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    ids = ids_of(1, 512)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(512)[None]}
    feeds |= {
        item.name: np.zeros((1, item.shape[1], 0, item.shape[3]), np.float32)
        for item in session.get_inputs()
        if item.name not in feeds
    }
    names = [item.name for item in session.get_outputs() if "/mlp/experts/" in item.name]
    values = session.run(names, feeds)
    assert len(values) > 2 * EXPERTS * 5
    assert max(value.size for value in values) <= 512 * 2 * max(HIDDEN, 2 * INNER)
    # The experts' rows together are the pairs of tokens and experts, not every expert's of every token.
    rows = [value for value in values if value.ndim == 2 and value.shape[1] == 2 * INNER]
    assert sum(len(value) for value in rows) == 2 * 512 * 2
