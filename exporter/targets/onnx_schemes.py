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

from exporter.grid import Codes, input_grid, quantized
from exporter.policy import Scheme
from exporter.targets.onnx_linear import Matrix
from exporter.targets.onnx_nodes import add, insert, replace, reshaped, transposed

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
            _static(model, node, packed, scale, scheme)
        else:
            _dynamic(node, packed, scale)


def _static(model: ir.Model, node: ir.Node, packed: ir.Value, scale: ir.Value, scheme: Scheme) -> None:
    """x @ W as DequantizeLinear(QuantizeLinear(x)) @ DequantizeLinear(W)."""
    operand = node.inputs[0]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    assert operand is not None
    if bias is None:
        codes = _static_input(model, node, operand, scheme)
        weight = insert(node, "DequantizeLinear", [packed, scale], {"axis": 1}, label="weight")
        replace(node, "MatMul", [codes, weight[0]], {})
        return
    # A Gemm. onnxruntime would make one again of a product of two axes and its bias, and has no integer kernel for a
    # float bias: a third axis keeps them apart. A bias in int32 would do too, but not in every other engine.
    first = model.graph.initializers.get("first_axis") or add(model, "first_axis", np.array([0], np.int64))
    codes = _static_input(model, node, insert(node, "Unsqueeze", [operand, first])[0], scheme)
    weight = insert(node, "DequantizeLinear", [packed, scale], {"axis": 1}, label="weight")
    product = insert(node, "MatMul", [codes, weight[0]])
    replace(node, "Squeeze", [insert(node, "Add", [product[0], bias])[0], first], {})


def _static_input(model: ir.Model, node: ir.Node, operand: ir.Value, scheme: Scheme) -> ir.Value:
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
