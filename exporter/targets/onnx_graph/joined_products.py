"""Products with the same input as one: a layer's query, key and value, and its gate and up, where their schemes agree.

A graph keeps each weight by itself until all else is done to it, so that a policy finds the modules. Then the matrices
are stacked along their outputs, and what comes out is split: the same numbers, from fewer and larger products.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.targets.onnx_graph.nodes import constant, hand_over, insert

if TYPE_CHECKING:
    import onnx_ir as ir

_BLOCKED = "MatMulNBits"


def join_products(model: ir.Model) -> None:
    """Joins MatMuls with constant matrices [K, N], and MatMulNBits of the same bits and blocks, that share an input."""
    from onnx_ir.passes import common

    found: dict[tuple[Any, ...], list[ir.Node]] = {}
    for node in model.graph:
        if (kind := _kind(node)) is not None:
            found.setdefault(kind, []).append(node)
    for nodes in found.values():
        if len(nodes) > 1:
            _join(model, nodes)
    common.RemoveUnusedNodesPass()(model)


def _kind(node: ir.Node) -> tuple[Any, ...] | None:
    """What products must have in common; None for one that stays alone."""
    if node.op_type not in ("MatMul", _BLOCKED) or node.outputs[0].is_graph_output():
        return None
    operand, *weights = node.inputs
    # A weight that is used elsewhere too, such as a tied embedding, is not moved.
    if operand is None or any(one is not None and (not one.is_initializer() or len(one.uses()) > 1) for one in weights):
        return None
    if node.op_type == "MatMul":
        tensor = weights[0].const_value if weights[0] is not None else None
        if tensor is None or len(tensor.shape) != 2:
            return None
        return operand, node.op_type, tensor.dtype
    if len(weights) > 3:  # an order of the groups, or a bias
        return None
    told = tuple(sorted((name, one.value) for name, one in node.attributes.items() if name != "N"))
    return operand, node.op_type, told, len(weights)


def _join(model: ir.Model, nodes: Sequence[ir.Node]) -> None:
    first = nodes[0]
    axis = 1 if first.op_type == "MatMul" else 0
    stacked = [_stack(model, column, axis) for column in zip(*(node.inputs[1:] for node in nodes), strict=True)]
    sizes = [_channels(node) for node in nodes]
    attributes = {name: attribute.value for name, attribute in first.attributes.items()}
    if "N" in attributes:
        attributes["N"] = sum(sizes)
    operands = [first.inputs[0], *stacked]
    [product] = insert(first, first.op_type, operands, attributes, label="joined", domain=first.domain)
    ends = constant(model, f"split_{'_'.join(map(str, sizes))}", np.array(sizes, np.int64))
    parts = insert(first, "Split", [product, ends], {"axis": -1}, len(nodes), label="parts")
    for node, part in zip(nodes, parts, strict=True):
        hand_over(node.outputs[0], part)
        model.graph.remove(node, safe=True)


def _channels(node: ir.Node) -> int:
    if "N" in node.attributes:
        return node.attributes["N"].as_int()
    weight = node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    return int(weight.const_value.shape.numpy()[1])


def _stack(model: ir.Model, values: Sequence[ir.Value | None], axis: int) -> ir.Value | None:
    """One initializer of several, made when it is written: no second copy of the weights is held."""
    import onnx_ir as ir

    tensors = [value.const_value for value in values if value is not None and value.const_value is not None]
    if not tensors:
        return None
    shape = list(tensors[0].shape.numpy())
    axis = axis if len(shape) > 1 else 0  # scales and zero points of all channels in a row
    shape[axis] = sum(int(tensor.shape.numpy()[axis]) for tensor in tensors)
    name = "+".join(str(value.name) for value in values if value is not None)
    make = partial(_concatenated, tensors, axis, name)
    tensor = ir.LazyTensor(make, dtype=tensors[0].dtype, shape=ir.Shape(shape), name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def _concatenated(tensors: Sequence[ir.TensorProtocol], axis: int, name: str) -> ir.TensorProtocol:
    import onnx_ir as ir

    return ir.Tensor(np.concatenate([tensor.numpy() for tensor in tensors], axis), name=name)
