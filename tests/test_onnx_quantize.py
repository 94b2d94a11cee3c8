"""The quantizing passes: codes against the floats they stand for, and ONNX Runtime's operators against the codes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from exporter.quantization.grid import rounded, rounded_input
from exporter.scheme import Scheme
from exporter.targets.onnx.half import half
from exporter.targets.onnx.quantize import INT4, quantize_by_rule
from exporter.targets.onnx_graph.half_scales import halve_scales
from exporter.targets.onnx_graph.linear import find_matrices
from exporter.targets.onnx_graph.nodes import finish
from exporter.targets.onnx_graph.schemes import GROUPS, quantize

RNG = np.random.default_rng(0)
VOCABULARY, HIDDEN, INNER = 96, 64, 160


def network(tied: bool, gemm: bool) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """ids -> table -> x W1 (+ bias) -> relu -> W2 -> head: every way in which a graph holds a matrix."""
    weights = {
        "table": RNG.normal(size=(VOCABULARY, HIDDEN)),
        "w1": RNG.normal(size=(HIDDEN, INNER)) / 8,
        "b1": RNG.normal(size=INNER),
        "w2": RNG.normal(size=(HIDDEN, INNER)) / 12,  # as torch's Linear has it, [N, K]
        "head": RNG.normal(size=(HIDDEN, VOCABULARY)),
    }
    weights = {name: value.astype(np.float32) for name, value in weights.items() if not (tied and name == "head")}
    nodes = [helper.make_node("Gather", ["table", "ids"], ["x"])]
    if gemm:
        nodes.append(helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]))
    else:
        nodes += [helper.make_node("MatMul", ["x", "w1"], ["m"]), helper.make_node("Add", ["m", "b1"], ["h"])]
    nodes += [
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Transpose", ["w2"], ["w2_t"], perm=[1, 0]),
        helper.make_node("MatMul", ["r", "w2_t"], ["y"]),
    ]
    if tied:
        nodes.append(helper.make_node("Transpose", ["table"], ["table_t"], perm=[1, 0]))
    nodes.append(helper.make_node("MatMul", ["y", "table_t" if tied else "head"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", VOCABULARY])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(proto, full_check=True)
    return ir.from_proto(proto), weights


def forward(model: ir.Model) -> np.ndarray:
    proto = ir.to_proto(model)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"ids": np.arange(VOCABULARY)})[0]


def exact(weights: dict[str, np.ndarray]) -> np.ndarray:
    hidden = np.maximum(weights["table"] @ weights["w1"] + weights["b1"], 0) @ weights["w2"].T
    return hidden @ weights.get("head", weights["table"].T)


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


both = pytest.mark.parametrize(("tied", "gemm"), [(True, False), (True, True), (False, False), (False, True)])


@both
def test_all_matrices_are_found_with_their_uses(tied, gemm):
    matrices = {str(matrix.value.name): matrix for matrix in find_matrices(network(tied, gemm)[0])}
    assert set(matrices) == {"table", "w1", "w2"} | (set() if tied else {"head"})
    assert matrices["w1"].shape == (INNER, HIDDEN)
    assert matrices["w2"].shape == (HIDDEN, INNER)
    assert (len(matrices["table"].lookups), len(matrices["table"].products)) == (1, int(tied))


# An int8 block of 32 has a relative error of about 0.4%; three in a row with int8 activations, under 2%.
@both
@pytest.mark.parametrize(("precision", "limit"), [("int8-weight", 0.02), ("int4-weight", 0.2)])
def test_weight_only_keeps_the_function(tied, gemm, precision, limit):
    model, weights = network(tied, gemm)
    assert quantize_by_rule(model, precision, decoder=True) == []
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("MatMulNBits") == 3
    assert kinds.count("GatherBlockQuantized") == 1
    assert "MatMul" not in kinds
    error = relative_error(forward(model), exact(weights))
    assert 0 < error < limit
    tables = [tensor for tensor in model.graph.initializers.values() if tensor.const_value.size >= VOCABULARY * HIDDEN]
    assert len([t for t in tables if t.name.startswith("table")]) == 1, "a tied table is stored once"
    assert all(tensor.dtype != ir.DataType.FLOAT for tensor in tables)


SCHEMES = [Scheme(weight=w, group=g, symmetric=s) for w in ("int8", "int4") for g in GROUPS for s in (True, False)]
SCHEMES.append(Scheme(weight="int8", input="dynamic"))
SCHEMES += [Scheme(weight="int8", input="static", range=(low, 4.0)) for low in (-4.0, -3.5)]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: f"{scheme} {scheme.range or ''}")
def test_every_scheme_of_a_tied_table_is_what_the_grid_says(scheme):
    """Its rows to float32's rounding; its product too with a static input. Others round the input in their own way."""
    weight = RNG.normal(size=(VOCABULARY, 256)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Transpose", ["table"], ["table_t"], perm=[1, 0]),
        helper.make_node("MatMul", ["rows", "table_t"], ["logits"]),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "n"])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "n", size])
        for name, size in (("rows", 256), ("logits", VOCABULARY))
    ]
    graph = helper.make_graph(nodes, "tied", [ids], outputs, [numpy_helper.from_array(weight, "table")])
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))
    [matrix] = find_matrices(model)
    quantize(model, matrix, scheme)
    finish(model)
    proto = ir.to_proto(model)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    rows, logits = session.run(None, {"ids": np.arange(VOCABULARY).reshape(2, -1)})
    table = rounded(torch.from_numpy(weight), scheme)
    np.testing.assert_allclose(rows.reshape(weight.shape), table, atol=1e-6)
    expected = (rounded_input(table, scheme) @ table.T).numpy()
    limit = 1e-6 if scheme.input == "static" else 0.015
    assert relative_error(logits.reshape(expected.shape), expected) < limit
    assert proto.ByteSize() < weight.size * (scheme.bits / 8 + 4.5 / (scheme.group or 256)) + 2500


@both
def test_scales_take_half_where_they_lose_nothing(tied, gemm):
    model, _ = network(tied, gemm)
    for matrix in find_matrices(model):
        quantize(model, matrix, INT4)
    finish(model)
    before = forward(model)
    scales = [value for value in model.graph.initializers.values() if str(value.name).endswith("_scales")]
    other = scales[-1]
    assert other.const_value is not None
    other.const_value = ir.Tensor(
        other.const_value.numpy() * np.float32(1 + 2**-14), name=other.name
    )  # of another's grid
    halve_scales(model)
    halved = [str(value.name) for value in model.graph.initializers.values() if value.dtype == ir.DataType.FLOAT16]
    assert halved == [f"{scale.name}_half" for scale in scales[:-1]]
    other.const_value = ir.Tensor(other.const_value.numpy() / np.float32(1 + 2**-14), name=other.name)
    np.testing.assert_array_equal(forward(model), before)


@both
@pytest.mark.parametrize("decoder", [True, False])
def test_dynamic_int8_keeps_the_function(tied, gemm, decoder):
    model, weights = network(tied, gemm)
    assert quantize_by_rule(model, "int8-dynamic", decoder) == []
    kinds = [node.op_type for node in model.graph]
    # A decoder's narrowing matrix (w2) and its head get blocks; an encoder's do not, but for what is looked up.
    assert kinds.count("MatMulInteger") == (1 if decoder else 2 if tied else 3)
    assert 0 < relative_error(forward(model), exact(weights)) < 0.03


def test_products_of_one_activation_share_its_quantization():
    model, _ = network(tied=False, gemm=False)
    first = next(node for node in model.graph if node.op_type == "MatMul")
    twin = ir.node("MatMul", list(first.inputs), name="twin")
    model.graph.insert_after(first, twin)
    quantize_by_rule(model, "int8-dynamic", decoder=False)
    assert [node.op_type for node in model.graph].count("DynamicQuantizeLinear") == 3  # not 4


def test_a_matrix_that_does_not_fill_its_blocks_stays_in_float_and_is_named():
    model, weights = network(tied=False, gemm=False)
    value = model.graph.initializers["w1"]
    narrow = weights["w1"][:40]
    value.const_value = ir.Tensor(narrow, name="w1")
    table = model.graph.initializers["table"]
    table.const_value = ir.Tensor(weights["table"][:, :40].copy(), name="table")
    for changed in (value, table):
        changed.shape = changed.const_value.shape
    assert quantize_by_rule(model, "int8-weight", decoder=True) == [
        "kept in float: table, w1 (no multiple of the block size)"
    ]
    expected = exact(weights | {"w1": narrow, "table": weights["table"][:, :40]})
    assert relative_error(forward(model), expected) < 0.02


@both
def test_half_keeps_the_function_and_the_types_of_inputs_and_outputs(tied, gemm):
    model, weights = network(tied, gemm)
    for value in model.graph.initializers.values():  # large enough to go around the converter
        assert value.const_value is not None
    converted = half(model)
    assert converted.graph.outputs[0].dtype == ir.DataType.FLOAT
    assert all(v.dtype != ir.DataType.FLOAT for v in converted.graph.initializers.values() if v.const_value.size > 1)
    assert 0 < relative_error(forward(converted), exact(weights)) < 0.005
