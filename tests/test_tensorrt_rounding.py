"""What float16 cannot hold, what int8 rounds, and the proof that rounds where an engine does."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import transformers as t
from onnx import helper
from tensorrt_graphs import SIZES, TOLERANCE, Opened, expected, off, profile, some_ids, static_policy
from tensorrt_parser import parse

from exporter.checkpoint.linear import linear_layers
from exporter.errors import BuildError
from exporter.quantization.simulation import simulated
from exporter.scheme import Scheme
from exporter.targets.onnx_graph.modules import module_rows
from exporter.targets.onnx_graph.nodes import finish
from exporter.targets.onnx_graph.rounding import write_proof
from exporter.targets.onnx_graph.traced import load_model, trace_causal_lm
from exporter.targets.tensorrt.quantize import cannot_express, quantize
from exporter.types import GENERATION

pytestmark = pytest.mark.usefixtures("one_thread")


def large(folder, scale):
    """A Llama whose first feed-forward block writes activations beyond float16's range."""
    torch.manual_seed(0)
    model = t.LlamaForCausalLM(t.LlamaConfig(**SIZES, num_key_value_heads=2))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
        model.model.layers[0].mlp.down_proj.weight.mul_(scale)
    model.save_pretrained(folder)
    return folder


def test_what_overflows_on_calibration_text_stays_in_float32(trt_write, tmp_path):
    folder = large(tmp_path / "large", 3e5)
    model, ids = load_model(folder, GENERATION, False), some_ids(2, 24)
    path, careless = trt_write("large", "fp16", folder=folder)
    assert any("not checked for overflow" in note for note in careless.notes)
    assert not np.isfinite(Opened(path, "fp16")(ids)).all()
    path, graph = trt_write("large", "fp16", windows=some_ids(2, 32), folder=folder)
    kept = [line for line in graph.kept_float if "beyond float16" in line]
    assert any("layers.0/mlp/down_proj/MatMul" in line for line in kept)
    assert not any("layers.1/mlp/up_proj" in line for line in kept)
    assert any(note.startswith(f"{len(kept)} operators stay in float32") for note in graph.notes)
    assert parse(path) == []
    assert off(Opened(path, "fp16")(ids), expected(model, ids)) < TOLERANCE["fp16"]


def test_the_proof_rounds_where_onnxruntime_would_not(tmp_path):
    """2048 + 1 + 1 is 2048 in float16; onnxruntime drops the casts between two operators that it casts itself."""
    half = onnx.TensorProto.FLOAT16
    nodes = [helper.make_node("Add", ["x", "one"], ["a"]), helper.make_node("Add", ["a", "one"], ["b"])]
    nodes.append(helper.make_node("Cast", ["b"], ["y"], to=1))
    one = onnx.numpy_helper.from_array(np.array([1], np.float16), "one")
    x, y = helper.make_tensor_value_info("x", half, ["n"]), helper.make_tensor_value_info("y", 1, ["n"])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], [one]), opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    )
    onnx.save(model, tmp_path / "model.onnx")
    write_proof(tmp_path / "model.onnx", tmp_path / "proof.onnx")
    answers = [
        onnxruntime.InferenceSession(tmp_path / name).run(None, {"x": np.array([2048], kind)})[0][0]
        for name, kind in (("model.onnx", np.float16), ("proof.onnx", np.float32))
    ]
    assert answers == [2050, 2048]


def test_policies_that_cannot_be_had(trt_write):
    with pytest.raises(BuildError, match="needs a policy with the ranges"):
        trt_write("tiny", "int8")
    for scheme, said in (
        (Scheme(weight="int8", input="static", range=(-1.0, 2.0)), "signed"),
        (Scheme(weight="int8", input="dynamic"), "dynamic input"),
        (Scheme(weight="int4", group=32), "int4"),
    ):
        assert said in cannot_express("int8", scheme)
        with pytest.raises(BuildError, match="cannot express"):
            trt_write("tiny", "int8", {"model.layers.0.mlp.up_proj": scheme})
    assert cannot_express("int8", Scheme(weight="int8", input="static", signed=True)) is None
    assert cannot_express("int8-weight", Scheme(weight="int8", group=64)) is None
    assert "takes no policy" in cannot_express("fp16", Scheme(weight="int8"))


def test_int8_weights_in_groups(trt_models, trt_write):
    folder, _ = trt_models("llama")
    names = linear_layers(load_model(folder, GENERATION, False))
    path, _ = trt_write("llama", "int8-weight", {name: Scheme(weight="int8", group=32) for name in names})
    assert parse(path, profile) == []
    ids = some_ids(2, 9)
    assert off(Opened(path, "int8-weight")(ids), expected(load_model(folder, GENERATION, False), ids)) < 3e-2


def test_int8_is_what_was_simulated(tmp_path):
    """In float32 arithmetic and with scales that float16 holds: the same codes, so the same numbers."""
    torch.manual_seed(0)
    model = t.LlamaForCausalLM(t.LlamaConfig(**SIZES, num_key_value_heads=2))
    with torch.no_grad():
        for layer in linear_layers(model).values():  # weights on an int8 grid whose steps float16 holds exactly
            codes = torch.randint(-127, 128, layer.weight.shape)
            codes[:, 0] = 127
            layer.weight.copy_(codes * 2.0**-9)
    model.save_pretrained(tmp_path / "checkpoint")
    model = load_model(tmp_path / "checkpoint", GENERATION, False)
    policy, ids = static_policy(model, some_ids(2, 32)), some_ids(2, 24)
    trace_causal_lm(tmp_path / "checkpoint", tmp_path / "float.onnx")
    graph = ir.load(tmp_path / "float.onnx")
    products, _ = quantize(graph, policy, module_rows(model), True)
    assert products.int8 == products.all > 0
    finish(graph)
    ir.save(graph, tmp_path / "model.onnx")
    exact = expected(model, ids)
    with torch.no_grad(), simulated(model, policy):
        want = expected(model, ids)
    got = Opened(tmp_path / "model.onnx", "int8")(ids)
    errors, costs = (np.sqrt(np.square(this - want).mean(-1)) for this in (got, exact))
    assert np.median(errors / costs) < 1e-3
