"""The quantizing passes: codes against the floats they stand for, and ONNX Runtime's operators against the codes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from exporter.targets.onnx_half import half
from exporter.targets.onnx_linear import find_matrices
from exporter.targets.onnx_quantize import asymmetric_4bit, dynamic_int8, symmetric_8bit, weight_only
from exporter.types import Floats

RNG = np.random.default_rng(0)
shapes = st.tuples(st.integers(1, 5), st.integers(1, 4), st.sampled_from([8, 16, 32]))


def blocks_of(shape: tuple[int, int, int], seed: int, scale: float) -> Floats:
    return (np.random.default_rng(seed).standard_t(4, size=shape) * scale).astype(np.float32)


@settings(max_examples=50)
@given(shapes, st.integers(0, 1000), st.sampled_from([1e-6, 1.0, 1e4]))
def test_8_bit_codes_are_within_half_a_step(shape, seed, scale):
    blocks = blocks_of(shape, seed, scale)
    codes, scales = symmetric_8bit(blocks)
    restored = scales[..., None] * (codes.astype(np.float32) - 128)
    assert np.all(np.abs(restored - blocks) <= scales[..., None] * 0.5001)
    assert codes.min() >= 1  # -127 to 127: the range is symmetric


def unpack(packed: np.ndarray, count: int) -> np.ndarray:
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)[..., :count]


@settings(max_examples=50)
@given(shapes, st.integers(0, 1000), st.sampled_from([1e-6, 1.0, 1e4]))
def test_4_bit_blocks_are_no_worse_than_plain_rounding_of_their_range(shape, seed, scale):
    blocks = blocks_of(shape, seed, scale)
    codes, scales, zeros = asymmetric_4bit(blocks)
    codes, zeros = unpack(codes, shape[2]).astype(np.float32), unpack(zeros, shape[1]).astype(np.float32)
    error = np.square(scales[..., None] * (codes - zeros[..., None]) - blocks).sum(-1)
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    step = np.maximum((high - low) / 15, 1e-30)
    zero = np.rint(-low / step)[..., None]
    plain = (np.clip(np.rint(blocks / step[..., None]) + zero, 0, 15) - zero) * step[..., None]
    assert np.all(error <= np.square(plain - blocks).sum(-1) * 1.001 + 1e-12)


def test_blocks_of_zeros_stay_zero():
    zeros = np.zeros((2, 2, 32), np.float32)
    codes, scales = symmetric_8bit(zeros)
    assert np.all(codes == 128)
    assert np.all(scales == 1)
    codes, scales, points = asymmetric_4bit(zeros)
    assert np.all(unpack(codes, 32) == unpack(points, 2)[..., None])
    assert np.isfinite(scales).all()


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
@pytest.mark.parametrize(("bits", "limit"), [(8, 0.02), (4, 0.2)])
def test_weight_only_keeps_the_function(tied, gemm, bits, limit):
    model, weights = network(tied, gemm)
    assert weight_only(model, bits) == []
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("MatMulNBits") == 3
    assert kinds.count("GatherBlockQuantized") == 1
    assert "MatMul" not in kinds
    error = relative_error(forward(model), exact(weights))
    assert 0 < error < limit
    tables = [tensor for tensor in model.graph.initializers.values() if tensor.const_value.size >= VOCABULARY * HIDDEN]
    assert len([t for t in tables if t.name.startswith("table")]) == 1, "a tied table is stored once"
    assert all(tensor.dtype != ir.DataType.FLOAT for tensor in tables)


@both
@pytest.mark.parametrize("decoder", [True, False])
def test_dynamic_int8_keeps_the_function(tied, gemm, decoder):
    model, weights = network(tied, gemm)
    assert dynamic_int8(model, decoder) == []
    kinds = [node.op_type for node in model.graph]
    # A decoder's narrowing matrix (w2) and its head get blocks; an encoder's do not, but for what is looked up.
    assert kinds.count("MatMulInteger") == (1 if decoder else 2 if tied else 3)
    assert 0 < relative_error(forward(model), exact(weights)) < 0.03


def test_products_of_one_activation_share_its_quantization():
    model, _ = network(tied=False, gemm=False)
    first = next(node for node in model.graph if node.op_type == "MatMul")
    twin = ir.node("MatMul", list(first.inputs), name="twin")
    model.graph.insert_after(first, twin)
    dynamic_int8(model, decoder=False)
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
    assert set(weight_only(model, 8)) == {"w1", "table"}
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
