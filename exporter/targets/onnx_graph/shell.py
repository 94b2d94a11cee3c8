"""A graph without its weights, for tools that want a whole ModelProto in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

LARGE = 1 << 16  # bytes; smaller tensors stay, for some tools look at their values


def shell(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    """The graph with its large weights declared as further inputs, and those weights by name; `model` is unchanged."""
    import onnx_ir as ir

    graph = model.graph
    taken = {
        v: v.const_value
        for v in graph.initializers.values()
        if v.const_value is not None and v.const_value.nbytes > LARGE
    }
    for value, tensor in taken.items():
        value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
        graph.initializers.pop(str(value.name))
        value.const_value = None
        graph.inputs.append(value)
    try:
        return ir.to_proto(model), {str(value.name): tensor for value, tensor in taken.items()}
    finally:
        for value, tensor in taken.items():
            graph.inputs.remove(value)
            value.const_value = tensor
            graph.initializers.add(value)


def check(model: ir.Model) -> None:
    """onnx.checker over every node, type and name of the graph; raises onnx.checker.ValidationError."""
    import onnx

    proto, _ = shell(model)
    onnx.checker.check_model(proto)
