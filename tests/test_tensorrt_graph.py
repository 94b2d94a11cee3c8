"""Graphs for TensorRT of tiny trt_models: its own parser takes them, and with their types' rounding they are right."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from tensorrt_graphs import MODELS, TOLERANCE, Opened, expected, off, profile, some_ids, static_policy
from tensorrt_parser import parse

from exporter.quantization.simulation import simulated
from exporter.targets.onnx_graph.traced import load_model
from exporter.targets.tensorrt.lint import refused
from exporter.targets.tensorrt.parts import share
from exporter.types import CLASSIFICATION, GENERATION

pytestmark = pytest.mark.usefixtures("one_thread")
PRECISIONS = ["fp32", "fp16", "bf16", "int8", "int8-weight"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["tiny", *MODELS])
def test_parsed_and_right_at_other_batches_and_lengths(trt_models, trt_write, kind, precision):
    folder, task = trt_models(kind)
    model = load_model(folder, task, False)
    policy = static_policy(model, some_ids(4, 48)) if precision == "int8" else None
    path, graph = trt_write(kind, precision, policy, some_ids(2, 32))
    onnx.checker.check_model(path)
    assert refused(path) == []
    assert parse(path) == []
    assert {node.domain for node in onnx.load(path).graph.node} == {""}
    assert not any("beyond" in line for line in graph.kept_float)
    share_of_int8 = share([graph.products])
    assert (share_of_int8 == 1.0) if precision == "int8" else not share_of_int8
    opened = Opened(path, precision)
    for batch, length in ((1, 1), (3, 7), (2, 40)):
        ids = some_ids(batch, length)
        with torch.no_grad(), simulated(model, policy or {}):
            want = expected(model, ids)
        got = opened(ids)
        if length > 1:
            assert off(got, want) < TOLERANCE[precision]
        if task == GENERATION and length > 1:
            assert off(opened(ids, steps=length // 2), got) < TOLERANCE[precision] / 2
    ids, mask = some_ids(2, 12), np.ones((2, 12), np.int64)
    mask[1, 5:] = 0
    got, alone = opened(ids, mask), opened(ids[1:, :5])
    assert off(got[1] if task == CLASSIFICATION else got[1, :5], alone[0]) < TOLERANCE[precision] / 2


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_builds_an_engine(trt_models, trt_write, kind, precision):
    """The parser takes an Attention in float32 that the builder has no kernels for."""
    folder, task = trt_models(kind)
    policy = static_policy(load_model(folder, task, False), some_ids(2, 16)) if precision == "int8" else None
    path, _ = trt_write(kind, precision, policy)
    assert parse(path, profile) == []


def test_types_of_inputs_and_outputs(trt_write):
    path, _ = trt_write("tiny", "fp16")
    graph = onnx.load(path).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    assert kinds["logits"] == onnx.TensorProto.FLOAT
    assert kinds["past_key_values.1.key"] == kinds["present.1.value"] == onnx.TensorProto.FLOAT16
    weights = [tensor for tensor in graph.initializer if np.prod(tensor.dims) > 1000]
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.FLOAT16}
    assert sum(node.op_type == "Attention" for node in graph.node) == 3


def test_statistics_and_tables_stay_in_float32(trt_write):
    path, graph = trt_write("tiny", "fp16")
    proto = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in proto.value_info}
    for node in proto.node:
        if node.op_type in ("Pow", "ReduceMean", "Sqrt", "Cos", "Sin"):
            assert kinds[node.output[0]] == onnx.TensorProto.FLOAT
            assert any(line.startswith(node.name) for line in graph.kept_float)
        if node.op_type == "MatMul":
            assert kinds.get(node.output[0]) == onnx.TensorProto.FLOAT16
