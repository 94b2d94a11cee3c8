"""A scheme in a graph's operators: how ONNX holds a quantized matrix, multiplies with it and looks its rows up.

- in groups, the input in float: com.microsoft's MatMulNBits and GatherBlockQuantized
  (https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md);
- per channel, the input at run time: DynamicQuantizeLinear, MatMulInteger and a rescaling, in ONNX's own operators;
- per channel, the input with a fixed range: QuantizeLinear and DequantizeLinear (Q/DQ), also ONNX's own.

The last two are patterns that onnxruntime fuses when it loads the model, into DynamicQuantizeMatMul and
MatMulIntegerToFloat. Codes of static inputs are uint8 throughout, a symmetric range's with zero point 128: the same
numbers as int8 with zero point 0, but of those onnxruntime 1.31 leaves two fifths of SmolLM2's products in float on
x86, or with session.qdqisint8allowed runs them in kernels that take six times as long. On x86 without VNNI the kernels
of uint8 by int8 add pairs in 16 bits and may saturate: measure there again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from exporter.quantization.grid import INT32, Codes, input_grid, quantized
from exporter.scheme import Scheme
from exporter.targets.onnx_graph.linear import Matrix
from exporter.targets.onnx_graph.nodes import add, constant, insert, replace, reshaped, transposed

if TYPE_CHECKING:
    import onnx_ir as ir

Bytes = NDArray[np.uint8]
GROUPS = (16, 32, 64, 128, 256)  # what MatMulNBits takes


def expressible(scheme: Scheme) -> bool:
    """Whether one of the operators above holds a scheme; a range may be missing still."""
    if scheme.input == "float":
        return scheme.group in GROUPS
    return scheme.weight == "int8" and scheme.group is None and scheme.symmetric


def quantize(model: ir.Model, matrix: Matrix, scheme: Scheme) -> None:
    """Gives one matrix its scheme, which must be expressible and fit the number of inputs."""
    if scheme.input == "float":
        _weight_only(model, matrix, scheme)
    else:
        _per_channel(model, matrix, scheme)


def codes_of(matrix: Matrix, scheme: Scheme) -> Codes:
    """The codes of all the modules that are stacked in the matrix, each rounded as if it stood alone."""
    import torch

    weight = torch.from_numpy(
        np.require(matrix.read(), requirements=["C", "W"])
    )  # torch warns of memory that is read-only
    parts = [quantized(part, scheme) for part in torch.split(weight, list(matrix.rows) or len(weight))]
    return Codes(*(torch.cat([getattr(part, name) for part in parts]) for name in ("codes", "scales", "zeros")))


def _weight_only(model: ir.Model, matrix: Matrix, scheme: Scheme) -> None:
    channels, inputs = matrix.shape
    name, bits = str(matrix.value.name), scheme.bits
    codes = codes_of(matrix, scheme)
    # The operators' codes are unsigned, and without zero points mean their middle by 0.
    middle = 1 << (bits - 1) if scheme.symmetric else 0
    attributes = {"bits": bits, "block_size": codes.codes.shape[-1]}
    scale = add(model, f"{name}_scales", codes.scales.numpy())
    zero = None if scheme.symmetric else add(model, f"{name}_zero_points", _packed(codes.zeros.numpy(), bits))
    stored = _packed((codes.codes + middle).numpy(), bits)
    if matrix.products:
        packed = add(model, f"{name}_Q{bits}", stored)
        for node in matrix.products:
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            operands = [node.inputs[0], packed, scale, zero, None, bias]
            while operands[-1] is None:
                operands.pop()
            # accuracy_level 4 lets the kernel multiply int8 by int8, with activations quantized in the same blocks.
            extra = {"N": channels, "K": inputs, "accuracy_level": 4}
            replace(node, "MatMulNBits", operands, attributes | extra, "com.microsoft")
        rows = reshaped(model, packed, (channels, stored[0].size)) if matrix.lookups else packed
    else:
        rows = add(model, f"{name}_Q{bits}", stored.reshape(channels, -1))
    for node in matrix.lookups:
        extra = {"gather_axis": 0, "quantize_axis": 1}
        operands = [rows, node.inputs[1], scale, *([] if zero is None else [zero])]
        replace(node, "GatherBlockQuantized", operands, attributes | extra, "com.microsoft")


def _packed(codes: NDArray[np.int16], bits: int) -> Bytes:
    """Codes as bytes; those of 4 bits two to a byte along the last axis, the first in the low half."""
    whole = codes.astype(np.uint8)
    if bits == 8:
        return whole
    if whole.shape[-1] % 2:
        whole = np.concatenate([whole, np.zeros_like(whole[..., :1])], axis=-1)
    packed: Bytes = whole[..., 0::2] | (whole[..., 1::2] << np.uint8(4))
    return packed


def _per_channel(model: ir.Model, matrix: Matrix, scheme: Scheme) -> None:
    name = str(matrix.value.name)
    codes = codes_of(matrix, scheme)
    rows = codes.codes.numpy()[:, 0].astype(np.int8)
    scale = add(model, f"{name}_scales", codes.scales.numpy()[:, 0])
    if matrix.lookups:
        # Rows stay together for the lookups; the product gets the transpose, which the runtime makes and packs anyway.
        table = add(model, f"{name}_Q8", rows)
        packed = transposed(model, table)
        scales = reshaped(model, scale, (len(rows), 1))
        for node in matrix.lookups:
            ids = node.inputs[1]
            assert ids is not None
            found = insert(node, "Cast", insert(node, "Gather", [table, ids], label="rows"), {"to": 1})
            replace(node, "Mul", [found[0], insert(node, "Gather", [scales, ids], label="scales")[0]], {})
    else:
        packed = add(model, f"{name}_Q8", np.ascontiguousarray(rows.T))
    for node in matrix.products:
        if scheme.input == "static":
            _static(model, node, packed, scale, matrix.shape[1], scheme)
        else:
            _dynamic(node, packed, scale)


def _static(model: ir.Model, node: ir.Node, packed: ir.Value, scale: ir.Value, inputs: int, scheme: Scheme) -> None:
    """x @ W as DequantizeLinear(QuantizeLinear(x)) @ DequantizeLinear(W); with a bias as a Gemm of the rows of x.

    onnxruntime adds a bias within an integer kernel for a Gemm alone, and for a bias in int32 alone. As an addition of
    its own it takes a sixth of MiniLM's time.
    """
    operand = node.inputs[0]
    assert operand is not None
    bias, last = _bias(node)
    codes = None if bias is None else _bias_codes(bias, scale, scheme)
    if codes is None:
        floats = [bias] if bias is not None and last is node else []
        operands = [static_input(model, node, operand, scheme), _static_weight(model, node, packed, scale), *floats]
        replace(node, node.op_type, operands, {})
        return
    rows = operand if last is node else _as_rows(model, node, operand, inputs)
    operands = [static_input(model, node, rows, scheme), _static_weight(model, node, packed, scale)]
    name = f"{node.outputs[0].name}_bias"
    steps = add(model, f"{name}_scales", np.float32(input_grid(scheme)[0]) * _numbers(scale))
    operands += insert(node, "DequantizeLinear", [add(model, name, codes), steps], {"axis": 0}, label="bias")
    if last is node:
        replace(node, "Gemm", operands, {})
    else:
        product = insert(node, "Gemm", operands)
        # A 0 is a length: of a source that was read already no states are left.
        whole = [product[0], _whole_shape(model, node, operand, len(codes))]
        replace(last, "Reshape", whole, {"allowzero": 1})


def _static_weight(model: ir.Model, node: ir.Node, packed: ir.Value, scale: ir.Value) -> ir.Value:
    """A weight's DequantizeLinear, with zeros: without any onnxruntime leaves a Gemm in float."""
    channels = len(_numbers(scale))
    zeros = constant(model, f"zeros_{channels}", np.zeros(channels, np.int8))
    return insert(node, "DequantizeLinear", [packed, scale, zeros], {"axis": 1}, label="weight")[0]


def _bias(node: ir.Node) -> tuple[ir.Value | None, ir.Node]:
    """A product's constant bias [N], and the node that adds it: a Gemm itself, or an Add that is its only user."""
    if node.op_type == "Gemm":
        return node.inputs[2] if len(node.inputs) > 2 else None, node
    [(user, position), *others] = [*node.outputs[0].uses(), (node, 0)]
    other = user.inputs[1 - position] if user.op_type == "Add" and len(others) == 1 else None
    if other is not None and other.is_initializer() and other.shape is not None and len(other.shape) == 1:
        return other, user
    return None, node


def _numbers(value: ir.Value) -> NDArray[np.float32]:
    assert value.const_value is not None
    numbers: NDArray[np.float32] = value.const_value.numpy()
    return numbers


def _bias_codes(bias: ir.Value, scale: ir.Value, scheme: Scheme) -> NDArray[np.int32] | None:
    """A bias [N] in the product's own steps; None where it is no constant of N numbers, or too large for int32."""
    if not bias.is_initializer() or _numbers(bias).shape != _numbers(scale).shape:
        return None
    steps = np.rint(_numbers(bias) / (input_grid(scheme)[0] * _numbers(scale).astype(np.float64)))
    return steps.astype(np.int32) if np.abs(steps).max() < INT32 else None


def _as_rows(model: ir.Model, node: ir.Node, operand: ir.Value, inputs: int) -> ir.Value:
    """An operand [..., K] as [rows, K]; one for all the products that share it."""
    sizes = constant(model, f"rows_of_{inputs}", np.array([-1, inputs], np.int64))
    for user, _ in operand.uses():
        if user.op_type == "Reshape" and user.inputs[1] is sizes:
            return user.outputs[0]
    return insert(node, "Reshape", [operand, sizes], label="rows")[0]


def _whole_shape(model: ir.Model, node: ir.Node, operand: ir.Value, channels: int) -> ir.Value:
    """The shape [..., channels] of a product whose operand is [..., K]; one for all of the operand's of that width."""
    width = constant(model, f"width_{channels}", np.array([channels], np.int64))
    outer = next((user.outputs[0] for user, _ in operand.uses() if user.op_type == "Shape" and _is_outer(user)), None)
    if outer is None:
        [outer] = insert(node, "Shape", [operand], {"end": -1})
    for user, _ in outer.uses():
        if user.op_type == "Concat" and user.inputs[1] is width:
            return user.outputs[0]
    return insert(node, "Concat", [outer, width], {"axis": 0})[0]


def _is_outer(shape: ir.Node) -> bool:
    return "end" in shape.attributes and shape.attributes["end"].as_int() == -1


def static_input(model: ir.Model, node: ir.Node, operand: ir.Value, scheme: Scheme) -> ir.Value:
    """A node's input, rounded; one pair of Q and DQ for all the products that share it and its range."""
    step, zero, lowest, _ = input_grid(scheme)
    name = f"{operand.name}_{step:.9g}_{zero - lowest}"  # nine digits tell float32 numbers apart
    for user, _ in operand.uses():
        if user.op_type == "QuantizeLinear" and user.inputs[1] is not None and user.inputs[1].name == f"{name}_scale":
            return next(reader.outputs[0] for reader, _ in user.outputs[0].uses())
    steps = add(model, f"{name}_scale", np.array(step, np.float32))
    zeros = add(model, f"{name}_zero_point", np.array(zero - lowest, np.uint8))
    codes = insert(node, "QuantizeLinear", [operand, steps, zeros])
    return insert(node, "DequantizeLinear", [codes[0], steps, zeros], label="input")[0]


def _dynamic(node: ir.Node, packed: ir.Value, scale: ir.Value) -> None:
    """x @ W as DynamicQuantizeLinear(x), MatMulInteger, and a rescaling."""
    quantized_input = _dynamic_input(node)
    before = node.inputs[2] if len(node.inputs) > 2 else None
    product = insert(node, "MatMulInteger", [quantized_input[0], packed, quantized_input[2]])
    floats = insert(node, "Cast", product, {"to": 1})
    both = insert(node, "Mul", [quantized_input[1], scale], label="scales")
    if before is None:
        replace(node, "Mul", [floats[0], both[0]], {})
    else:
        scaled = insert(node, "Mul", [floats[0], both[0]])
        replace(node, "Add", [scaled[0], before], {})


def _dynamic_input(node: ir.Node) -> tuple[ir.Value, ...]:
    """(uint8 codes, scale, zero point) of a node's first input; one for all the products that share it."""
    operand = node.inputs[0]
    assert operand is not None
    for user, _ in operand.uses():
        if user.op_type == "DynamicQuantizeLinear":
            return tuple(user.outputs)
    return insert(node, "DynamicQuantizeLinear", [operand], outputs=3)
