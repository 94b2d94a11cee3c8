"""int8 for TensorRT: symmetric Q/DQ pairs around matrix products, or weights alone behind a DequantizeLinear.

Zero points are 0, codes are int8, and scales are float16 numbers, for the graph around them is float16: the codes are
found on the grid that those scales make.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exporter.errors import BuildError
from exporter.quantization.grid import input_grid, quantized
from exporter.quantization.policy import check_schemes
from exporter.scheme import Scheme
from exporter.targets.onnx_graph.convolutions import convolutions, name_convolutions
from exporter.targets.onnx_graph.linear import Matrix, find_matrices
from exporter.targets.onnx_graph.modules import Rows, name_matrices, split_where_schemes_differ
from exporter.targets.onnx_graph.nodes import add, constant, insert, replace
from exporter.targets.onnx_graph.schemes import codes_of

if TYPE_CHECKING:
    import onnx_ir as ir

STATIC = Scheme(weight="int8", group=None, input="static", signed=True)
WEIGHT = Scheme(weight="int8", group=None)
# What a policy chooses from for each precision, cheapest first; then float, which is float16 here.
SCHEMES: Mapping[str, tuple[Scheme, ...]] = {"int8": (STATIC,), "int8-weight": (WEIGHT,)}
_HALF_SCALES = 19  # the opset, with IR 9, whose DequantizeLinear makes float16 of float16's scales
_SMALLEST = float(np.finfo(np.float16).smallest_normal)  # a smaller scale would lose digits


class Products(NamedTuple):
    """How many of the linear layers' multiplications, a token each, have both operands in int8, and of how many.

    A language model's head is left out.
    """

    int8: int
    all: int


def cannot_express(precision: str, scheme: Scheme) -> str | None:
    """Why a precision cannot give a layer a scheme, with what it can; None where it can. Ranges may be missing."""
    if precision not in SCHEMES:
        return f"TensorRT's {precision} quantizes nothing and takes no policy; those that do: {', '.join(SCHEMES)}"
    whole = scheme.weight == "int8" and scheme.symmetric
    if scheme.input == "float" and whole and scheme.group in (None, 32, 64, 128, 256):
        return None
    signed = scheme.signed or scheme.symmetric_input
    if precision == "int8" and scheme.input == "static" and whole and scheme.group is None and signed:
        return None
    static = "int8 per channel, symmetric, with a static input that is signed (zero point 0); " * (precision == "int8")
    return (
        f"TensorRT's {precision} cannot express {scheme}; it takes {static}int8, symmetric, per channel or in groups "
        "of 32, 64, 128 or 256, with a float input; float"
    )


def check_policy(precision: str, policy: Mapping[str, Scheme | None] | None) -> None:
    """Raises BuildError for a policy that the precision cannot take, or that it lacks."""
    if policy is None and precision == "int8":
        raise BuildError("TensorRT's int8 needs a policy with the ranges of its inputs; 'exporter run' makes one")
    check_schemes(policy, partial(cannot_express, precision))


def quantize(
    model: ir.Model, policy: Mapping[str, Scheme | None] | None, modules: Mapping[str, Rows], decoder: bool
) -> tuple[Products, tuple[str, ...]]:
    """Gives each matrix and convolution of a float32 graph its module's scheme; without a policy int8 weights, all.

    `modules` as of onnx_modules.module_rows. Returns how much is multiplied in int8, and notes. What is only looked up
    stays in float. Raises BuildError for a scheme that does not fit its matrix.
    """
    if policy is None:
        policy = dict.fromkeys(modules, WEIGHT)
    convolved = name_convolutions(convolutions(model), modules)
    multiplied = {name: scheme for name, scheme in policy.items() if name not in convolved}
    matrices, notes = name_matrices(model, find_matrices(model), multiplied, modules)
    parts = [part for whole in matrices for part in split_where_schemes_differ(model, whole, policy)]
    model.opset_imports[""] = max(model.opset_imports[""], _HALF_SCALES)
    model.ir_version = max(model.ir_version or 0, 9)
    total = static = 0
    for matrix in parts:
        scheme = policy.get(matrix.modules[0]) if matrix.modules else None
        if not matrix.products:
            continue
        size = matrix.shape[0] * matrix.shape[1]
        if not (decoder and matrix.is_last(model.graph)):
            total += size
            static += size if scheme is not None and scheme.input == "static" else 0
        if scheme is not None:
            _quantize(model, matrix, scheme)
    for name, node in convolved.items():
        scheme = policy.get(name)
        size = _weight(node).size
        total += size
        if scheme is not None:
            static += size if scheme.input == "static" else 0
            _convolve(model, name, node, scheme)
    return Products(static, total), tuple(notes)


def _weight(node: ir.Node) -> NDArray[np.float32]:
    """A convolution's constant weight."""
    value = node.inputs[1]
    assert value is not None
    assert value.const_value is not None
    weight: NDArray[np.float32] = value.const_value.numpy()
    return weight


def _convolve(model: ir.Model, module: str, node: ir.Node, scheme: Scheme) -> None:
    """A convolution with an int8 weight per output channel, and of a static input with that rounded."""
    import torch

    if scheme.group is not None:
        raise BuildError(f"the policy: {module} is a convolution, which is no {scheme}: int8 per channel, or float")
    weight, (operand, value, *others) = _weight(node), node.inputs
    assert operand is not None
    assert value is not None
    rows = torch.from_numpy(weight.reshape(len(weight), -1).copy())
    scales = _in_half(quantized(rows, scheme).scales.numpy()[:, 0])
    codes = np.rint(weight / scales.reshape(-1, *[1] * (weight.ndim - 1))).clip(-127, 127).astype(np.int8)
    stored, scale = add(model, f"{value.name}_Q8", codes), add(model, f"{value.name}_scales", scales)
    if scheme.input == "static":
        operand = _rounded(model, node, operand, scheme)
    [floats] = insert(node, "DequantizeLinear", [stored, scale], {"axis": 0}, label="weight")
    replace(node, "Conv", [operand, floats, *others], {name: one.value for name, one in node.attributes.items()})


def _quantize(model: ir.Model, matrix: Matrix, scheme: Scheme) -> None:
    channels, inputs = matrix.shape
    group = scheme.group or inputs
    if inputs % group:
        wrong = f"{inputs} inputs, no multiple of the group {group}"
        raise BuildError(f"the policy: {matrix.modules[0]} has {wrong}; give it another group, or float")
    name = str(matrix.value.name)
    scales = _in_half(codes_of(matrix, scheme).scales.numpy())
    ratios = matrix.read().reshape(channels, -1, group) / scales[..., None]
    rows = np.rint(ratios, out=ratios).clip(-127, 127).astype(np.int8).reshape(channels, inputs)
    blocks = {} if scheme.group is None else {"block_size": group}
    if scheme.group is None:
        scales = scales[:, 0]
    stored = add(model, f"{name}_Q8", np.ascontiguousarray(rows.T))
    scale, axis = add(model, f"{name}_scales", np.ascontiguousarray(scales.T)), 0 if blocks else 1
    for node in matrix.products:
        operand = node.inputs[0]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        assert operand is not None
        if scheme.input == "static":
            operand = _rounded(model, node, operand, scheme)
        [weight] = insert(node, "DequantizeLinear", [stored, scale], {"axis": axis} | blocks, label="weight")
        if bias is None:
            replace(node, "MatMul", [operand, weight], {})
        else:  # a Gemm
            [product] = insert(node, "MatMul", [operand, weight], label="product")
            replace(node, "Add", [product, bias], {})


def _rounded(model: ir.Model, node: ir.Node, operand: ir.Value, scheme: Scheme) -> ir.Value:
    """A node's input through Q and DQ; one pair for all the products that share the input and its range."""
    step = float(_in_half(np.array([input_grid(scheme)[0]], np.float32))[0])
    name = f"{operand.name}_{step:.9g}_scale"
    for user, _ in operand.uses():
        if user.op_type == "QuantizeLinear" and user.inputs[1] is not None and user.inputs[1].name == name:
            return next(reader.outputs[0] for reader, _ in user.outputs[0].uses())
    scale = add(model, name, np.array(step, np.float32))
    zero = constant(model, "int8_zero", np.array(0, np.int8))
    [codes] = insert(node, "QuantizeLinear", [operand, scale, zero])
    return insert(node, "DequantizeLinear", [codes, scale, zero], label="input")[0]


def _in_half(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales as float16 holds them with all its digits."""
    result: NDArray[np.float32] = scales.clip(_SMALLEST, None).astype(np.float16).astype(np.float32)
    if not np.isfinite(result).all():
        raise BuildError("a scale is beyond float16's range; leave its layer in float, or use fp32")
    return result
