"""A graph of half precision or int8 as a float32 graph that rounds where the engine rounds: what ONNX Runtime proves.

ONNX Runtime has no float16 arithmetic on x86. It casts an operator's inputs to float32 and its output back, and drops
the two casts between one operator and the next, at every level of optimization: 2048 + 1 + 1 is 2050 there and 2048 in
float16. Casts that are in the graph itself are kept. So here each operator computes in float32, as a GPU accumulates,
and its result is rounded to the type that the graph gives it by a pair of casts. Attention and the like are written
out, with all that comes between rounded too; a fused kernel keeps more digits than that. Q and DQ are float32
arithmetic on integers: exact, as in an integer kernel.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.targets.onnx_graph import attention_operator, fused_operators
from exporter.targets.onnx_graph.file import save_graph
from exporter.targets.onnx_graph.nodes import constant, insert, replace
from exporter.targets.onnx_graph.shell import shell

if TYPE_CHECKING:
    import onnx_ir as ir

_NARROW = ("FLOAT16", "BFLOAT16")
# These only move numbers that are rounded already.
_MOVING = {
    "Cast", "Concat", "ConstantOfShape", "DequantizeLinear", "Expand", "Flatten", "Gather", "Identity", "Max", "Neg",
    "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip


@contextmanager
def proof_of(model_onnx: Path, folder: Path) -> Iterator[Path]:
    """The file of `write_proof`, beside an artifact's folder; it goes with the context: a session needs none."""
    place = folder.parent / f".{folder.name.strip('.')}-proof.{os.getpid()}.tmp"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    try:
        write_proof(model_onnx, place / "model.onnx")
        yield place / "model.onnx"
    finally:
        shutil.rmtree(place, ignore_errors=True)


def write_proof(model_onnx: Path, proof_onnx: Path) -> None:
    """Writes the float32 graph that computes what `model_onnx` does with its types; the KV cache is float32 too."""
    import onnx_ir as ir

    model = ir.load(model_onnx)
    kinds = _narrow_values(model)
    for value in [value for node in model.graph for value in node.outputs if str(value.name) in kinds]:
        value.dtype = kinds[str(value.name)]
    attention_operator.write_out(model)
    fused_operators.write_out(model)
    kinds = _narrow_values(model)
    for value in list(model.graph.initializers.values()):
        if str(value.name) in kinds:
            _widen(value)
    for node in list(model.graph):
        _compute_in_float(model, node, kinds)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.dtype is not None and value.dtype.name in _NARROW:
            value.dtype = ir.DataType.FLOAT
    for node in model.graph:
        for value in node.outputs:
            if value not in model.graph.outputs:
                value.type = value.shape = None
    model.graph.sort()
    save_graph(model, proof_onnx, limit=0)


def _narrow_values(model: ir.Model) -> dict[str, ir.DataType]:
    """The values of half precision and their types."""
    import onnx
    import onnx_ir as ir

    proto = onnx.shape_inference.infer_shapes(shell(model)[0])
    graph = proto.graph
    found = {info.name: info.type.tensor_type.elem_type for info in (*graph.input, *graph.value_info, *graph.output)}
    found |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    narrow = {ir.DataType[name].value: ir.DataType[name] for name in _NARROW}
    return {name: narrow[kind] for name, kind in found.items() if kind in narrow}


def _widen(value: ir.Value) -> None:
    import onnx_ir as ir

    tensor, name = value.const_value, str(value.name)
    assert tensor is not None
    lazy = partial(_float_copy, tensor, name)
    value.const_value = ir.LazyTensor(lazy, dtype=ir.DataType.FLOAT, shape=ir.Shape(tensor.shape.numpy()), name=name)
    value.type = ir.TensorType(ir.DataType.FLOAT)


def _float_copy(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    import onnx_ir as ir

    return ir.Tensor(tensor.numpy().astype(np.float32), name=name)


def _compute_in_float(model: ir.Model, node: ir.Node, kinds: dict[str, ir.DataType]) -> None:
    """A node whose operands are float32 now; its half-precision results are rounded to their own type."""
    import onnx_ir as ir

    if node.op_type == "Cast" and ir.DataType(node.attributes["to"].as_int()).name in _NARROW:
        node.attributes.add(ir.AttrInt64("to", ir.DataType.FLOAT.value))
        _round(node, node.outputs[0], kinds[str(node.outputs[0].name)])
        return
    if node.op_type == "QuantizeLinear":
        _quantize(model, node)
    elif node.op_type == "DequantizeLinear":
        codes, scale, *_ = node.inputs
        assert codes is not None
        assert scale is not None
        # ONNX Runtime would fuse either into integer kernels: those of int8 weights round their float inputs too.
        if codes.is_initializer():
            _fold(model, node, codes, scale)
        else:
            replace(node, "Mul", [insert(node, "Cast", [codes], {"to": 1}, label="codes")[0], scale], {})
    elif node.op_type not in _MOVING:
        for value in list(node.outputs):
            if str(value.name) in kinds:
                _round(node, value, kinds[str(value.name)])


def _fold(model: ir.Model, node: ir.Node, codes: ir.Value, scale: ir.Value) -> None:
    """The float32 weight in the place of its DequantizeLinear."""
    import onnx_ir as ir

    assert codes.const_value is not None
    assert scale.const_value is not None
    axis = node.attributes["axis"].as_int()
    name, shape = f"{node.outputs[0].name}/float", ir.Shape(codes.const_value.shape.numpy())
    lazy = partial(_dequantized, codes.const_value, scale.const_value, axis, name)
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
    value.const_value = ir.LazyTensor(lazy, dtype=ir.DataType.FLOAT, shape=shape, name=name)
    model.graph.register_initializer(value)
    node.outputs[0].replace_all_uses_with(value)
    model.graph.remove(node, safe=True)


def _dequantized(codes: ir.TensorProtocol, scale: ir.TensorProtocol, axis: int, name: str) -> ir.TensorProtocol:
    import onnx_ir as ir

    numbers, scales = codes.numpy(), scale.numpy().astype(np.float32)
    if scales.ndim == numbers.ndim:  # in blocks along the axis
        scales = scales.repeat(numbers.shape[axis] // scales.shape[axis], axis)
    else:
        scales = np.expand_dims(scales, [other for other in range(numbers.ndim) if other != axis])
    return ir.Tensor(numbers.astype(np.float32) * scales, name=name)


def _quantize(model: ir.Model, node: ir.Node) -> None:
    """QuantizeLinear to int8 with zero point 0, in float32 up to its result."""
    operand, scale = node.inputs[:2]
    assert operand is not None
    assert scale is not None
    limits = [
        constant(model, f"int8_{name}", np.array(limit, np.float32)) for name, limit in (("low", -128), ("high", 127))
    ]
    [ratio] = insert(node, "Div", [operand, scale], label="ratio")
    [whole] = insert(node, "Round", [ratio], label="whole")
    [inside] = insert(node, "Clip", [whole, *limits], label="inside")
    replace(node, "Cast", [inside], {"to": 3})


def _round(node: ir.Node, value: ir.Value, kind: ir.DataType) -> None:
    """Two casts between a value and its readers, which get its name where it leaves the graph."""
    import onnx_ir as ir

    graph = node.graph
    assert graph is not None
    name = str(value.name)
    users = list(value.uses())
    down = ir.node("Cast", [value], {"to": kind.value}, name=f"{name}/round")
    up = ir.node("Cast", down.outputs, {"to": ir.DataType.FLOAT.value}, name=f"{name}/float")
    down.outputs[0].name, up.outputs[0].name = f"{name}/rounded", f"{name}/as_float"
    graph.insert_after(node, [down, up])
    for user, place in users:
        user.replace_input_with(place, up.outputs[0])
    if value in graph.outputs:
        outputs: Any = graph.outputs
        up.outputs[0].shape, up.outputs[0].type = value.shape, ir.TensorType(ir.DataType.FLOAT)
        outputs[outputs.index(value)] = up.outputs[0]
        value.name, up.outputs[0].name = f"{name}/exact", name
