"""Graphs that TensorRT refuses, named before its parser is asked: and it does refuse them, or misreads them."""

import re
from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tensorrt_parser import parse

from exporter.targets.tensorrt.lint import refused

pytestmark = pytest.mark.quick

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def tensor(name, array):
    return numpy_helper.from_array(array, name)


def value(name, kind, shape=("b", 8)):
    return helper.make_tensor_value_info(name, kind, list(shape))


STEP = tensor("step", np.array(0.05, np.float16))
WHOLE = tensor("whole", np.array(0.05, np.float32))


def pair(zero):
    """QuantizeLinear and DequantizeLinear around a float16 value."""
    names = ["step", *(["zero"] if zero is not None else [])]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *names], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", *names], ["y"], name="dequantize"),
    ]
    return nodes, [STEP, *([tensor("zero", zero)] if zero is not None else [])], HALF, HALF


CASES = {
    "contrib": (
        [helper.make_node("FastGelu", ["x"], ["y"], name="gelu", domain="com.microsoft")],
        [], HALF, HALF, r"^gelu \(FastGelu\): an operator of com.microsoft.*plain ONNX",
    ),
    "asymmetric": (*pair(np.array(3, np.int8)), r"^quantize \(QuantizeLinear\): asymmetric.*signed: true"),
    "dynamic": (
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="dynamic"),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        [], FLOAT, FLOAT, r"^dynamic \(DynamicQuantizeLinear\): .*static ranges in Q/DQ pairs",
    ),
    "integer": (
        [
            helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT8),
            helper.make_node("MatMulInteger", ["i", "w"], ["s"], name="product"),
            helper.make_node("Cast", ["s"], ["y"], to=FLOAT),
        ],
        [tensor("w", np.ones((8, 8), np.int8))], FLOAT, FLOAT, r"^product \(MatMulInteger\): .*no integer operators",
    ),
    "types": (
        [helper.make_node("Add", ["x", "whole"], ["y"], name="add")],
        [WHOLE], HALF, HALF, r"^add \(Add\): its inputs are FLOAT and FLOAT16.*needs a Cast",
    ),
    "operator": (
        [helper.make_node("Det", ["x"], ["y"], name="det")], [], FLOAT, FLOAT,
        r"^det \(Det\): TensorRT's parser has no such operator",
    ),
    "attention": (
        [helper.make_node("Attention", ["x", "x", "x"], ["y"], name="attend", softmax_precision=1)],
        [], HALF, HALF, r"^attend \(Attention\): TensorRT's Attention has no softmax_precision",
    ),
    "int16": (
        [helper.make_node("Identity", ["x"], ["y"])], [], TensorProto.INT16, TensorProto.INT16,
        r"^x: TensorRT has no tensors of INT16",
    ),
}  # fmt: skip


def save(folder, nodes, tensors, taken, given, shape=("b", 8)):
    graph = helper.make_graph(nodes, "g", [value("x", taken, shape)], [value("y", given, shape)], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("name", CASES)
def test_what_the_parser_refuses_is_named_with_what_to_do(name, tmp_path):
    *parts, said = CASES[name]
    shape = {"attention": ("b", 2, "s", 16), "operator": ("b", 4, 4)}.get(name, ("b", 8))
    path = save(tmp_path, *parts, shape)
    lines = refused(path)
    assert lines
    assert re.search(said, lines[0]), lines
    assert parse(path)


@pytest.mark.parametrize("zero", [np.array(0, np.uint8), None], ids=["uint8", "no zero point"])
def test_codes_that_are_misread(zero, tmp_path):
    """The parser takes them, as int8: half of the range would be clipped."""
    path = save(tmp_path, *pair(zero))
    assert any("codes of UINT8, which TensorRT reads as INT8" in line for line in refused(path))
    assert parse(path) == []


def test_symmetric_pairs_pass(tmp_path):
    path = save(tmp_path, *pair(np.array(0, np.int8)))
    assert refused(path) == []
    assert parse(path) == []


def test_many_lines_are_counted(tmp_path):
    names = ["x", *(f"v{number}" for number in range(29)), "y"]
    nodes = [helper.make_node("Det", [a], [b], name=b) for a, b in pairwise(names)]
    lines = refused(save(tmp_path, nodes, [], FLOAT, FLOAT))
    assert len(lines) == 21
    assert lines[-1] == "and 10 more of these"
