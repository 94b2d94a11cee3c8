"""What ONNX Runtime's own quantized operators do, in ONNX's: the same codes and bytes, for runtimes without them.

A lookup costs nothing so: only the rows that were asked for are made float. It is written so wherever the table has no
product to share its bytes with, as in encoders. A product is slower so, for its weights are made float each time: it is
written so only for a runtime that lacks the operator for 8 bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.targets.onnx_graph.nodes import constant, finish, insert, replace

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

LOOKUP, PRODUCT = "GatherBlockQuantized", "MatMulNBits"
BLOCKED = 21  # the opset whose DequantizeLinear takes scales in blocks


def plain_lookups(model: ir.Model, wherever: bool = False) -> None:
    """Writes lookups in ONNX's operators: of tables that nothing else uses, or all of them."""
    tables = [(node, _table(node)) for node in model.graph if node.op_type == LOOKUP]
    found = [
        (node, table)
        for node, table in tables
        if wherever or not any(user.op_type == PRODUCT for user, _ in table.uses())
    ]
    for node, table in found:
        _lookup(model, node, table)
    if found:
        finish(model)


def plain_products(model: ir.Model) -> None:
    """Writes products with 8-bit weights as DequantizeLinear and MatMul."""
    found = [node for node in model.graph if node.op_type == PRODUCT and node.attributes["bits"].as_int() == 8]
    for node in found:
        _product(model, node)
    if found:
        model.opset_imports[""] = max(model.opset_imports[""], BLOCKED)
        model.ir_version = max(model.ir_version or 0, 10)
        finish(model)


def _table(node: ir.Node) -> ir.Value:
    """A lookup's initializer, which it may see through a Reshape: that of a product has its blocks as an axis."""
    value = node.inputs[0]
    assert value is not None
    maker = value.producer()
    table = value if maker is None else maker.inputs[0]
    assert table is not None
    return table


def _lookup(model: ir.Model, node: ir.Node, table: ir.Value) -> None:
    bits, block = (node.attributes[name].as_int() for name in ("bits", "block_size"))
    _, ids, scale, *zero = node.inputs
    assert ids is not None
    assert scale is not None
    rows = insert(node, "Gather", [table, ids], label="rows")[0]
    codes = rows if bits == 8 else _halves(model, node, rows)
    size = insert(node, "Shape", [ids], label="ids")[0]
    ends = constant(model, f"blocks_of_{block}", np.array([-1, block], np.int64))
    shape = insert(node, "Concat", [size, ends], {"axis": 0}, label="blocks")[0]
    floats = insert(node, "Cast", [insert(node, "Reshape", [codes, shape], label="codes")[0]], {"to": 1})[0]
    middle = constant(model, f"middle_of_{bits}", np.array(1 << (bits - 1), np.float32))
    if zero and zero[0] is not None:
        zeros = constant(model, f"{zero[0].name}_float", _zeros(zero[0], bits, _columns(scale)))
        middle = insert(node, "Gather", [zeros, ids], label="zeros")[0]
    last = constant(model, "last_axis", np.array([-1], np.int64))
    steps = insert(
        node, "Unsqueeze", [insert(node, "Gather", [scale, ids], label="steps")[0], last], label="of_blocks"
    )[0]
    centred = insert(node, "Sub", [floats, middle], label="centred")[0]
    product = insert(node, "Mul", [centred, steps], label="floats")[0]
    whole = insert(node, "Concat", [size, last], {"axis": 0}, label="whole")[0]
    replace(node, "Reshape", [product, whole], {})


def _halves(model: ir.Model, node: ir.Node, rows: ir.Value) -> ir.Value:
    """Bytes as the two codes of 4 bits that each holds, the low half first, along a new last axis."""
    low = insert(node, "BitwiseAnd", [rows, constant(model, "low_half", np.array(15, np.uint8))], label="low")[0]
    four = constant(model, "half_a_byte", np.array(4, np.uint8))
    high = insert(node, "BitShift", [rows, four], {"direction": "RIGHT"}, label="high")[0]
    last = constant(model, "last_axis", np.array([-1], np.int64))
    both = [insert(node, "Unsqueeze", [half, last], label=f"{half.name}_half")[0] for half in (low, high)]
    return insert(node, "Concat", both, {"axis": -1}, label="halves")[0]


def _numbers(value: ir.Value) -> NDArray[Any]:
    assert value.const_value is not None
    numbers: NDArray[Any] = value.const_value.numpy()
    return numbers


def _columns(scale: ir.Value) -> int:
    return int(_numbers(scale).shape[-1])


def _zeros(zero: ir.Value, bits: int, columns: int) -> NDArray[np.float32]:
    """Zero points [rows, blocks, 1] as floats."""
    codes = _numbers(zero)
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1)
    return codes.reshape(len(codes), -1)[:, :columns, None].astype(np.float32)


def _product(model: ir.Model, node: ir.Node) -> None:
    operand, packed, scale, *rest = node.inputs
    zero = rest[0] if rest else None
    bias = rest[2] if len(rest) > 2 else None
    assert operand is not None
    assert packed is not None
    assert scale is not None
    channels, inputs, block = (node.attributes[name].as_int() for name in ("N", "K", "block_size"))
    of = (channels, inputs // block, 1)
    name = str(packed.name)
    zeros = np.full(of, 128, np.uint8) if zero is None else _numbers(zero).reshape(of).astype(np.uint8)
    points = constant(model, f"{name}_points", zeros)
    last = constant(model, "last_axis", np.array([-1], np.int64))
    steps = insert(node, "Unsqueeze", [scale, last], label="steps")[0]
    axes = {"axis": 2, "block_size": block}
    floats = insert(node, "DequantizeLinear", [packed, steps, points], axes, label="weight")[0]
    sizes = constant(model, f"{name}_matrix", np.array([channels, inputs], np.int64))
    matrix = insert(node, "Reshape", [floats, sizes], label="matrix")[0]
    turned = insert(node, "Transpose", [matrix], {"perm": [1, 0]}, label="turned")[0]
    if bias is None:
        replace(node, "MatMul", [operand, turned], {})
    else:
        replace(node, "Add", [insert(node, "MatMul", [operand, turned], label="product")[0], bias], {})
