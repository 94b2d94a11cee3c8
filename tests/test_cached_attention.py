"""Traces with ONNX Runtime's operators, and products joined: against PyTorch, padded, cached and windowed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import transformers as hf
from test_traced_graph import DECODERS, ENCODERS, LLAMA, TOLERANCE, Decoder, saved, session_of, worst_error

from bench.operators import profiled
from exporter.scheme import Scheme
from exporter.targets.onnx.quantize import INT4, INT8, quantize_by_policy, quantize_by_rule
from exporter.targets.onnx_graph.attention_operator import ANY_SIZE
from exporter.targets.onnx_graph.cached_attention import fuse
from exporter.targets.onnx_graph.file import save_graph
from exporter.targets.onnx_graph.joined_products import join_products
from exporter.targets.onnx_graph.modules import module_rows
from exporter.targets.onnx_graph.traced import load_model, notes_of, trace_causal_lm, trace_encoder
from exporter.types import FEATURES, GENERATION

# transformers lets its attention be chosen in all but these, which have their own.
OWN = {"bloom", "falcon-mqa", "falcon-new", "gptj", "mpt", "stablelm", "mpnet"}
# Head sizes that no fused attention of ONNX Runtime's own takes; heads of keys, and of values, of other sizes (MLA).
MORE = {
    "head-size-26": lambda: hf.LlamaConfig(**LLAMA | {"hidden_size": 104}),
    "mla": lambda: hf.DeepseekV3Config(
        **LLAMA | {"num_key_value_heads": 4}, kv_lora_rank=16, q_lora_rank=None, qk_rope_head_dim=8,
        qk_nope_head_dim=16, v_head_dim=24, first_k_dense_replace=2, n_routed_experts=2,
    ),
}  # fmt: skip


def fused(folder: Path, config: Any) -> tuple[Any, Path]:
    """(model, graph) of a random decoder."""
    model = saved(folder / "checkpoint", hf.AutoModelForCausalLM, config)
    trace_causal_lm(folder / "checkpoint", folder / "model.onnx", attention=ANY_SIZE, fuse=fuse)
    onnx.checker.check_model(folder / "model.onnx")
    return model, folder / "model.onnx"


def kinds(model: ir.Model | Path) -> Counter[str]:
    graph = ir.load(model).graph if isinstance(model, Path) else model.graph
    return Counter(node.op_type for node in graph)


@pytest.mark.parametrize("name", [*DECODERS, *MORE])
def test_a_decoder_answers_as_pytorch_does(name: str, tmp_path: Path) -> None:
    model, path = fused(tmp_path, (DECODERS | MORE)[name]())
    assert kinds(path)["Attention"] == (0 if name in OWN else 2)
    assert [" has code of its own" in note for note in notes_of(ir.load(path))] == [True] * (name in OWN)
    decoder = Decoder(path)
    assert worst_error(model, decoder) < TOLERANCE
    # Holes, and padding on the right, of one batch behind a cache; positions count what is seen.
    ids = np.random.default_rng(1).integers(3, 97, (2, 24))
    mask = np.ones_like(ids)
    mask[0, 5:8] = mask[1, 18:] = 0
    fed = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    if "position_ids" in decoder.shapes:
        fed["position_ids"] = torch.tensor(np.maximum(mask.cumsum(-1) - 1, 0))
    with torch.no_grad():
        expected = model(**fed, use_cache=False).logits.numpy()
    for steps in (0, 6):
        assert np.abs(decoder(ids, mask, steps) - expected)[mask == 1].max() < TOLERANCE


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_answers_as_pytorch_does(name: str, tmp_path: Path) -> None:
    model = saved(tmp_path / "checkpoint", hf.AutoModel, ENCODERS[name]())
    trace_encoder(tmp_path / "checkpoint", FEATURES, tmp_path / "model.onnx", attention=ANY_SIZE, fuse=fuse)
    assert kinds(tmp_path / "model.onnx")["Attention"] == (0 if name in OWN else 2)
    assert len(notes_of(ir.load(tmp_path / "model.onnx"))) == (name in OWN)
    session = session_of(tmp_path / "model.onnx")
    ids = np.random.default_rng(0).integers(4, 97, (2, 24))
    fed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    fed["attention_mask"][1, 17:] = 0
    fed = {item.name: fed[item.name] for item in session.get_inputs()}
    with torch.no_grad():
        expected = model(**{key: torch.tensor(value) for key, value in fed.items()}).last_hidden_state.numpy()
    seen = fed["attention_mask"] == 1
    assert np.abs(session.run(None, fed)[0] - expected)[seen].max() < TOLERANCE


CAPPED = {"num_hidden_layers": 2, "head_dim": 16, "sliding_window": 16}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (lambda: hf.Gemma2Config(**LLAMA | CAPPED), "a cap on the scores"),
        (lambda: hf.GptOssConfig(**LLAMA | CAPPED, num_local_experts=2, num_experts_per_tok=1), "attention sinks"),
    ],
)
def test_what_no_operator_takes_is_told(config: Any, told: str, tmp_path: Path) -> None:
    _, path = fused(tmp_path, config())
    assert not kinds(path)["Attention"]
    assert notes_of(ir.load(path)) == [f"attention is written out, not an operator: {told}"]


def test_nothing_is_turned_or_joined_beside_the_operators(tmp_path: Path) -> None:
    _, path = fused(tmp_path, DECODERS["mistral"]())
    graph = ir.load(path).graph
    layers = [node for node in graph if str(node.name).startswith("/model/layers.")]
    found = Counter(node.op_type for node in layers)
    assert found["Attention"] == 2
    assert found["RotaryEmbedding"] == 4
    assert not {"Transpose", "Reshape", "Concat", "Softmax"} & set(found), found
    # The first norm has nothing to add.
    assert (kinds(path)["SkipSimplifiedLayerNormalization"], kinds(path)["RMSNormalization"]) == (4, 1)
    assert not [value for value in graph.initializers if "cache" in value], "no rotary table of all positions"


def test_where_a_tokens_time_goes_is_told_by_operator(tmp_path: Path) -> None:
    _, path = fused(tmp_path, DECODERS["mistral"]())
    times, nodes = profiled(path, 12, 1)
    assert (nodes["Attention"], nodes["RotaryEmbedding"]) == (2, 4)
    assert times["Attention"] > 0
    assert set(times) == set(nodes)


@pytest.mark.parametrize("precision", ["fp32", "int8-weight", "int4-weight"])
def test_joined_products_give_what_they_gave_alone(precision: str, tmp_path: Path) -> None:
    _, path = fused(tmp_path, DECODERS["llama"]())
    answers, bytes_of = {}, {}
    for joined in (False, True):
        graph = ir.load(path)
        if precision != "fp32":
            quantize_by_rule(graph, precision, decoder=True)
        if joined:
            join_products(graph)
        products = kinds(graph)["MatMul" if precision == "fp32" else "MatMulNBits"]
        assert products == (2 * 4 + 1 if joined else 2 * 7 + 1), "query, key and value; gate and up"
        file = tmp_path / f"{joined}.onnx"
        save_graph(graph, file)
        ids = np.random.default_rng(0).integers(3, 97, (2, 12))
        answers[joined], bytes_of[joined] = Decoder(file)(ids, np.ones_like(ids), 4), file.stat().st_size
    np.testing.assert_allclose(answers[True], answers[False], atol=1e-5)
    assert bytes_of[True] < bytes_of[False] + 5_000
    assert np.std(answers[True]) > 0.05


def test_what_differs_in_its_scheme_stays_alone(tmp_path: Path) -> None:
    _, path = fused(tmp_path, DECODERS["llama"]())
    modules = module_rows(load_model(tmp_path / "checkpoint", GENERATION, False))
    policy: dict[str, Scheme | None] = dict.fromkeys(modules, INT4)
    policy |= {"model.layers.0.self_attn.q_proj": INT8, "model.layers.1.mlp.up_proj": None}
    graph = ir.load(path)
    quantize_by_policy(graph, policy, modules, True)
    join_products(graph)
    weights = [str(node.inputs[1].name) for node in graph.graph if len(node.inputs) > 1 and node.inputs[1] is not None]
    joined = sorted(name for name in weights if "+" in name)
    prefix = "model.layers.{}.{}.weight_Q4"
    assert joined == sorted(
        "+".join(prefix.format(layer, part) for part in parts)
        for layer, parts in (
            (0, ("self_attn.k_proj", "self_attn.v_proj")),
            (0, ("mlp.gate_proj", "mlp.up_proj")),
            (1, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        )
    )
