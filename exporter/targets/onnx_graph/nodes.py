"""Edits of an ONNX graph in onnx_ir's form: a new initializer, a node before another one, a node in another's place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx_ir as ir


def add(model: ir.Model, name: str, array: NDArray[np.generic]) -> ir.Value:
    """A new initializer."""
    import onnx_ir as ir

    tensor = ir.Tensor(array, name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def constant(model: ir.Model, name: str, array: NDArray[np.generic]) -> ir.Value:
    """The initializer of that name, made at the first call: nodes share it."""
    found = model.graph.initializers.get(name)
    return add(model, name, array) if found is None else found


def reshaped(model: ir.Model, value: ir.Value, shape: tuple[int, int]) -> ir.Value:
    """A view of an initializer in another shape; runtimes fold it when they load the model."""
    sizes = add(model, f"{value.name}_shape", np.array(shape, np.int64))
    return _folded(model, "Reshape", [value, sizes])


def transposed(model: ir.Model, value: ir.Value) -> ir.Value:
    """An initializer's transpose, which runtimes fold likewise."""
    return _folded(model, "Transpose", [value])


def as_float32(model: ir.Model, value: ir.Value) -> ir.Value:
    """An initializer of another type in float32, which runtimes fold likewise."""
    import onnx_ir as ir

    made = _folded(model, "Cast", [value], {"to": ir.DataType.FLOAT.value})
    made.shape, made.type = value.shape, ir.TensorType(ir.DataType.FLOAT)
    return made


def _folded(
    model: ir.Model, op: str, inputs: Sequence[ir.Value], attributes: Mapping[str, Any] | None = None
) -> ir.Value:
    import onnx_ir as ir

    node = ir.node(op, inputs, attributes, name=f"{inputs[0].name}/{op}")
    node.outputs[0].name = f"{inputs[0].name}_{op.lower()}"
    model.graph.insert_before(model.graph[0], node)
    return node.outputs[0]


def insert(
    before: ir.Node,
    op: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    outputs: int = 1,
    label: str = "",
    domain: str = "",
) -> tuple[ir.Value, ...]:
    """A new node in front of another one, of ONNX's own operators if no domain is given; returns its outputs."""
    import onnx_ir as ir

    name = f"{before.outputs[0].name}/{label or op}"  # values have unique names, nodes need not have any
    node = ir.node(op, inputs, attributes or {}, domain=domain, num_outputs=outputs, name=name)
    assert before.graph is not None
    before.graph.insert_before(before, node)
    return tuple(node.outputs)


def replace(
    old: ir.Node, op: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any], domain: str = ""
) -> None:
    """Puts another operator in a node's place; its output keeps its name and its users."""
    import onnx_ir as ir

    graph, output = old.graph, old.outputs[0]
    assert graph is not None
    node = ir.node(op, inputs, attributes, domain=domain, name=old.name)
    graph.insert_before(old, node)
    hand_over(output, node.outputs[0])
    graph.remove(old, safe=True)


def hand_over(old: ir.Value, new: ir.Value) -> None:
    """Gives a value's name, shape, type, readers and place among the graph's outputs to another one."""
    new.shape, new.type = old.shape, old.type
    new.name, old.name = old.name, None
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def finish(model: ir.Model) -> None:
    """Drops what nothing reads any more, such as the float weights."""
    from onnx_ir.passes import common

    model.opset_imports["com.microsoft"] = 1
    common.RemoveUnusedNodesPass()(model)
    model.graph.sort()
