"""ONNX precisions below float32, as passes over one graph: each takes the model and changes it in place.

- weight_only: 8 or 4 bits in blocks along the input channels (com.microsoft's MatMulNBits and GatherBlockQuantized,
  https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md). A tied embedding is stored once.
- dynamic_int8: int8 weights per output channel, uint8 activations at run time, in ONNX's own operators.
- half: float16, by onnxruntime's converter, which is shown the graph without its weights.

Tensors are read from the disk one by one: what is held in memory is the new weights, not the float ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from exporter.targets.onnx_linear import Matrix, find_matrices
from exporter.types import Floats

if TYPE_CHECKING:
    import onnx_ir as ir

Bytes = NDArray[np.uint8]
BLOCK = 32  # input channels that share a scale; onnxruntime's fast kernels take 32
TABLE_BLOCK = 128  # for tables that are only looked up: smaller blocks would cost more than they help
_SHRINK = np.linspace(1.0, 0.7, 7, dtype=np.float32)  # 4-bit ranges that are tried for each block


def weight_only(model: ir.Model, bits: int) -> list[str]:
    """Every matrix in 8 bits, or in 4 with the embedding and the head kept at 8. Returns what stayed in float."""
    left = []
    for matrix in find_matrices(model):
        keep_at_8 = bool(matrix.lookups) or matrix.is_last(model.graph)
        if not _weight_only(model, matrix, 8 if keep_at_8 else bits):
            left.append(str(matrix.value.name))
    _finish(model)
    return left


def dynamic_int8(model: ir.Model, decoder: bool) -> list[str]:
    """Products in int8 with activations quantized at run time, tables in 8 bits. Returns what stayed in float.

    In a decoder, what a per-tensor activation range ruins (the matrices that narrow, such as a feed-forward's second
    one, whose inputs have outliers, and the head) gets 8-bit weights in blocks instead.
    """
    left = []
    for matrix in find_matrices(model):
        channels, inputs = matrix.shape
        sensitive = decoder and (inputs > channels or matrix.is_last(model.graph))
        if matrix.lookups or sensitive:
            if not _weight_only(model, matrix, 8):
                left.append(str(matrix.value.name))
        else:
            _dynamic(model, matrix)
    _finish(model)
    return left


def _weight_only(model: ir.Model, matrix: Matrix, bits: int) -> bool:
    channels, inputs = matrix.shape
    block = TABLE_BLOCK if not matrix.products and inputs % TABLE_BLOCK == 0 else BLOCK
    if inputs % block:
        return False
    name = str(matrix.value.name)
    blocks = matrix.read().reshape(channels, inputs // block, block)
    if bits == 8:
        (codes, scales), zeros = symmetric_8bit(blocks), None
    else:
        codes, scales, zeros = asymmetric_4bit(blocks)
    attributes = {"bits": bits, "block_size": block}
    scale = _add(model, f"{name}_scales", scales)
    zero = None if zeros is None else _add(model, f"{name}_zero_points", zeros)
    if matrix.products:
        packed = _add(model, f"{name}_Q{bits}", codes)
        for node in matrix.products:
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            operands = [node.inputs[0], packed, scale, zero, None, bias]
            while operands[-1] is None:
                operands.pop()
            # accuracy_level 4 lets the kernel multiply int8 by int8, with activations quantized in the same blocks.
            extra = {"N": channels, "K": inputs, "accuracy_level": 4}
            _replace(node, "MatMulNBits", operands, attributes | extra, "com.microsoft")
        rows = _reshaped(model, packed, (channels, inputs)) if matrix.lookups else packed
    else:
        rows = _add(model, f"{name}_Q{bits}", codes.reshape(channels, inputs))
    for node in matrix.lookups:
        extra = {"gather_axis": 0, "quantize_axis": 1}
        _replace(node, "GatherBlockQuantized", [rows, node.inputs[1], scale], attributes | extra, "com.microsoft")
    return True


def symmetric_8bit(blocks: Floats) -> tuple[Bytes, Floats]:
    """[N, blocks, size] to codes around 128 of the same shape, and scales [N, blocks]: value = scale * (code - 128)."""
    scales = np.abs(blocks).max(axis=-1) / np.float32(127)
    scales[scales == 0] = 1
    codes = np.rint(blocks / scales[..., None])
    return (codes + 128).astype(np.uint8), scales


def asymmetric_4bit(blocks: Floats) -> tuple[Bytes, Floats, Bytes]:
    """[N, blocks, size] to codes packed two to a byte (low nibble first), scales, and zero points packed likewise.

    value = scale * (code - zero). Of a few ranges, each block gets the one with the least squared error.
    """
    low, high = np.minimum(blocks.min(axis=-1), 0), np.maximum(blocks.max(axis=-1), 0)
    shape = low.shape
    best = np.full(shape, np.inf, np.float32)
    scales, zeros = np.ones(shape, np.float32), np.zeros(shape, np.uint8)
    codes: Bytes = np.zeros(blocks.shape, np.uint8)
    for shrink in _SHRINK:
        scale = (high - low) * shrink / np.float32(15)
        scale[scale == 0] = 1
        zero = np.clip(np.rint(-low * shrink / scale), 0, 15)
        tried = np.clip(np.rint(blocks / scale[..., None]) + zero[..., None], 0, 15)
        error = np.square((tried - zero[..., None]) * scale[..., None] - blocks).sum(axis=-1)
        better = error < best
        best[better], scales[better], zeros[better] = error[better], scale[better], zero[better]
        codes[better] = tried[better]
    return _nibbles(codes), scales, _nibbles(zeros)


def _nibbles(codes: Bytes) -> Bytes:
    """Packs the last axis two to a byte, the first in the low half; an odd one is filled up with zero."""
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], axis=-1)
    packed: Bytes = codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))
    return packed


def _dynamic(model: ir.Model, matrix: Matrix) -> None:
    """x @ W as DynamicQuantizeLinear(x), MatMulInteger, and a rescaling: the pattern that onnxruntime fuses at load."""
    name = str(matrix.value.name)
    weights = matrix.read()
    scales = np.abs(weights).max(axis=1) / np.float32(127)
    scales[scales == 0] = 1
    scale = _add(model, f"{name}_scales", scales)
    packed = _add(model, f"{name}_Q8", np.rint(weights / scales[:, None]).T.astype(np.int8, order="C"))
    for node in matrix.products:
        quantized = _quantized_activation(node)
        before = node.inputs[2] if len(node.inputs) > 2 else None
        product = _insert(node, "MatMulInteger", [quantized[0], packed, quantized[2]])
        floats = _insert(node, "Cast", [product[0]], {"to": 1})
        both = _insert(node, "Mul", [quantized[1], scale], label="scales")
        if before is None:
            _replace(node, "Mul", [floats[0], both[0]], {})
        else:
            scaled = _insert(node, "Mul", [floats[0], both[0]])
            _replace(node, "Add", [scaled[0], before], {})


def _quantized_activation(node: ir.Node) -> tuple[ir.Value, ...]:
    """(uint8 codes, scale, zero point) of a node's first input; one for all the products that share it."""
    operand = node.inputs[0]
    assert operand is not None
    for user, _ in operand.uses():
        if user.op_type == "DynamicQuantizeLinear":
            return tuple(user.outputs)
    return _insert(node, "DynamicQuantizeLinear", [operand], outputs=3)


def _add(model: ir.Model, name: str, array: NDArray[np.generic]) -> ir.Value:
    import onnx_ir as ir

    tensor = ir.Tensor(array, name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def _reshaped(model: ir.Model, value: ir.Value, shape: tuple[int, int]) -> ir.Value:
    """A view of an initializer in another shape; runtimes fold it when they load the model."""
    import onnx_ir as ir

    sizes = _add(model, f"{value.name}_shape", np.array(shape, np.int64))
    node = ir.node("Reshape", [value, sizes], name=f"{value.name}/Reshape")
    model.graph.insert_before(model.graph[0], node)
    return node.outputs[0]


def _insert(
    before: ir.Node,
    op: str,
    inputs: list[ir.Value],
    attributes: dict[str, int] | None = None,
    outputs: int = 1,
    label: str = "",
) -> tuple[ir.Value, ...]:
    """A new node of ONNX's own operators in front of another one; returns its outputs."""
    import onnx_ir as ir

    name = f"{before.outputs[0].name}/{label or op}"  # values have unique names, nodes need not have any
    node = ir.node(op, inputs, attributes or {}, num_outputs=outputs, name=name)
    assert before.graph is not None
    before.graph.insert_before(before, node)
    return tuple(node.outputs)


def _replace(
    old: ir.Node, op: str, inputs: list[ir.Value | None], attributes: dict[str, int], domain: str = ""
) -> None:
    """Puts another operator in a node's place; its output keeps its name and its users."""
    import onnx_ir as ir

    graph, output = old.graph, old.outputs[0]
    assert graph is not None
    node = ir.node(op, inputs, attributes, domain=domain, name=old.name)
    graph.insert_before(old, node)
    node.outputs[0].shape, node.outputs[0].type = output.shape, output.type
    node.outputs[0].name, output.name = output.name, None
    output.replace_all_uses_with(node.outputs[0], replace_graph_outputs=True)
    graph.remove(old, safe=True)


def _finish(model: ir.Model) -> None:
    """Drops what nothing reads any more, such as the float weights."""
    from onnx_ir.passes import common

    model.opset_imports["com.microsoft"] = 1
    common.RemoveUnusedNodesPass()(model)
    model.graph.sort()
