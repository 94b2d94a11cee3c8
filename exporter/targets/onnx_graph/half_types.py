"""A float32 graph with its types written out, for an engine that keeps to them: half precision wherever that is safe.

TensorRT 11 decides nothing about precision: a tensor has the type that the graph gives it. In float32 stay

- tables, which are made of positions alone: rotary angles, their sines and cosines, masks, distances;
- statistics: powers, sums and means over a row, and what is computed elementwise from them until a product with a
  weight takes it up, such as a normalization that the model spells out;
- what has overflowed on calibration text: the nodes that read or write such a tensor.

All else, the matrix products and their weights and the KV cache, is float16 or bfloat16. Logits and hidden states leave
the graph as float32, for that is what is sampled from and compared; so do an encoder's states come into its decoder.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from exporter.errors import BuildError
from exporter.targets.onnx_graph.shell import LARGE, shell

if TYPE_CHECKING:
    import onnx_ir as ir

HANDED_ON = ("encoder_hidden_states",)  # a decoder's inputs that another graph leaves as float32
MASKED = 3e4  # in the place of float32's largest numbers: float16 ends at 65504, and a score is added to it
STATISTICS = {"Pow", "ReduceMean", "ReduceSum", "ReduceL2", "ReduceSumSquare", "Sqrt", "Reciprocal", "Exp", "Log"}
_ELEMENTWISE = {
    "Abs", "Add", "Clip", "Div", "Erf", "Max", "Min", "Mul", "Neg", "Sigmoid", "Softplus", "Sub", "Tanh", "Where",
}  # fmt: skip
MOVING = {"Expand", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
_ASKING = {"Cast", "IsInf", "IsNaN", "Shape", "Size"}  # of any type; a cast is to integers here
_MAKING = {"Cast", "ConstantOfShape", "Range", "Where"}  # tables begin with them
_TABLE, _STATISTIC = "made of positions", "statistics of a row"
OVERFLOW = "beyond float16 on calibration text"


def prepare(model: ir.Model) -> None:
    """Constants as initializers, no cast from float32 to itself, and no number that only stands for infinity."""
    from onnx_ir.passes import common

    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    kinds = _kinds(model)
    for node in list(model.graph):
        if node.op_type == "Cast" and _target(node) == 1 and kinds.get(_name(node.inputs[0])) == 1:
            taken, output = node.inputs[0], node.outputs[0]
            assert taken is not None
            if output not in model.graph.outputs:
                output.replace_all_uses_with(taken)
                model.graph.remove(node, safe=True)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype.name == "FLOAT" and tensor.nbytes <= LARGE:
            numbers = tensor.numpy()
            if numbers.size and np.abs(numbers).max() > 1e30:
                _put(value, numbers.clip(-MASKED, MASKED))
    common.RemoveUnusedNodesPass()(model)


def lower(model: ir.Model, kind: str, overflowing: Collection[str] = (), float_inputs: bool = False) -> tuple[str, ...]:
    """Brings a prepared float32 graph to `kind` (FLOAT16 or BFLOAT16) in place.

    `overflowing`: the names of values that are beyond its range; `float_inputs`: the KV cache comes and goes in
    float32, and pixel values come so, which every client can feed. Returns the nodes that stay in float32, each with
    the reason. Raises BuildError for a graph with branches or loops, whose types are not followed.
    """
    return _Lowering(model, kind, overflowing, float_inputs).run()


class _Lowering:
    def __init__(self, model: ir.Model, kind: str, overflowing: Collection[str], float_inputs: bool) -> None:
        import onnx_ir as ir

        for node in model.graph:
            if any(attribute.type.name in ("GRAPH", "GRAPHS") for attribute in node.attributes.values()):
                raise BuildError(f"{node.name} ({node.op_type}) has a graph of its own; use the precision fp32")
        self._model, self._half = model, ir.DataType[kind]
        self._overflowing, self._float_inputs = frozenset(overflowing), float_inputs
        self._floats = float_values(model)
        # Bytes of the initializers, and of what is made of nothing else.
        tensors = {str(name): value.const_value for name, value in model.graph.initializers.items()}
        self._constant = {name: 0 if tensor is None else tensor.nbytes for name, tensor in tensors.items()}
        self._kept: dict[str, str] = {}  # float32 values of nodes, and why
        self._copies: dict[tuple[str, ir.DataType], ir.Value] = {}

    def run(self) -> tuple[str, ...]:
        import onnx_ir as ir
        from onnx_ir.passes import common

        graph = self._model.graph
        told: list[str] = []
        outputs = [value for value in graph.outputs if str(value.name) in self._floats]
        for value in graph.inputs:
            if str(value.name) in self._floats and not self._float_inputs and value.name not in HANDED_ON:
                value.dtype = self._half
        for node in list(graph):
            floats = [value for value in node.outputs if _name(value) in self._floats]
            reads = [place for place, value in enumerate(node.inputs) if _name(value) in self._floats]
            if not floats and (not reads or node.op_type in _ASKING):
                continue
            reason = self._reason(node)
            kind = ir.DataType.FLOAT if reason else self._half
            for value in floats:
                value.dtype = kind
                if reason and not (reason == _STATISTIC and self._takes_up(node)):
                    self._kept[_name(value)] = reason
            if reason and floats and node.op_type not in MOVING and _name(floats[0]) not in self._constant:
                told.append(f"{node.name}: {reason}")
            for place in reads:
                operand = node.inputs[place]
                assert operand is not None
                node.replace_input_with(place, self._as(operand, kind))
        for value in outputs:  # those of the cache are computed in half precision, and stay so
            if self._float_inputs or not str(value.name).startswith("present."):
                self._leave_as_float(value)
        common.RemoveUnusedNodesPass()(self._model)
        graph.sort()
        return tuple(told)

    def _reason(self, node: ir.Node) -> str | None:
        """Why a node computes in float32, or None."""
        names = [_name(value) for value in node.inputs]
        floats = [name for name in names if name in self._floats]
        moving = [name for name in floats if name not in self._constant]
        made = node.op_type in _MAKING if not floats else node.op_type == "Where"
        if floats and not moving and not made and node.op_type not in ("Gather", "DequantizeLinear"):
            # Small ones are parts of tables, such as inverse frequencies; large ones are weights.
            size = max(self._constant[name] for name in floats)
            self._constant.update(dict.fromkeys(map(_name, node.outputs), size))
            return _TABLE if size <= LARGE else OVERFLOW if self._overflows(node) else None
        if (made and not moving) or (moving and all(self._kept.get(name) == _TABLE for name in moving)):
            return _TABLE
        if node.op_type in STATISTICS:
            return _STATISTIC
        read = {self._kept.get(name) for name in moving}
        if node.op_type in _ELEMENTWISE | MOVING and _STATISTIC in read:
            return _STATISTIC
        return OVERFLOW if self._overflows(node) else None

    def _takes_up(self, node: ir.Node) -> bool:
        """Whether a product with a weight ends a normalization: from there on it is an activation like others."""
        return node.op_type == "Mul" and any(self._constant.get(_name(value), 0) > 4 for value in node.inputs)

    def _overflows(self, node: ir.Node) -> bool:
        values = [_name(value) for value in (*node.inputs, *node.outputs)]
        if node.op_type == "DequantizeLinear":  # as what multiplies with it, so that nothing comes between the two
            return all(self._overflows(user) for user, _ in node.outputs[0].uses())
        return not self._overflowing.isdisjoint(values)

    def _as(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        """The value in a type: itself, a copy of an initializer, or a cast of it that all readers share."""
        import onnx_ir as ir

        if value.is_initializer():
            if kind == ir.DataType.FLOAT:
                return value
        elif value.dtype == kind:
            return value
        key = (str(value.name), kind)
        if key not in self._copies:
            self._copies[key] = self._cast_constant(value) if value.is_initializer() else self._cast(value, kind)
        return self._copies[key]

    def _cast_constant(self, value: ir.Value) -> ir.Value:
        import onnx_ir as ir

        tensor, name = value.const_value, f"{value.name}_{self._half.name.lower()}"
        assert tensor is not None
        lazy = partial(_converted, tensor, self._half, name)
        copy = ir.Value(name=name, shape=value.shape, type=ir.TensorType(self._half))
        copy.const_value = (
            ir.LazyTensor(lazy, dtype=self._half, shape=ir.Shape(tensor.shape.numpy()), name=name)
            if tensor.nbytes > LARGE
            else lazy()
        )
        self._model.graph.register_initializer(copy)
        return copy

    def _cast(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        import onnx_ir as ir

        name = f"{value.name}_{kind.name.lower()}"
        node = ir.node("Cast", [value], {"to": kind.value}, name=f"{value.name}/Cast")
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = name, ir.TensorType(kind), value.shape
        maker = value.producer()
        if maker is None:
            self._model.graph.insert_before(self._model.graph[0], node)
        else:
            self._model.graph.insert_after(maker, node)
        return node.outputs[0]

    def _leave_as_float(self, value: ir.Value) -> None:
        """An output in float32 under its own name, whatever type it is computed in."""
        import onnx_ir as ir

        if value.dtype == ir.DataType.FLOAT:
            return
        name = str(value.name)
        value.name = f"{name}_{self._half.name.lower()}"
        cast = self._cast(value, ir.DataType.FLOAT)
        cast.name = name
        outputs = self._model.graph.outputs
        outputs[outputs.index(value)] = cast


def float_values(model: ir.Model) -> set[str]:
    """The names of all float32 values."""
    return {name for name, kind in _kinds(model).items() if kind == 1}


def _kinds(model: ir.Model) -> dict[str, int]:
    """The element type of every value, as onnx.TensorProto numbers them."""
    import onnx

    proto = onnx.shape_inference.infer_shapes(shell(model)[0], data_prop=False)
    graph = proto.graph
    found = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for info in (*graph.input, *graph.value_info, *graph.output):
        found[info.name] = info.type.tensor_type.elem_type
    untyped = [name for node in graph.node for name in node.output if name and not found.get(name)]
    if untyped:
        raise BuildError(f"the types of {', '.join(untyped[:3])} are unknown; use the precision fp32")
    return found


def _converted(tensor: ir.TensorProtocol, kind: ir.DataType, name: str) -> ir.TensorProtocol:
    import onnx_ir as ir

    return ir.Tensor(tensor.numpy().astype(kind.numpy()), name=name)


def _put(value: ir.Value, array: np.ndarray) -> None:
    import onnx_ir as ir

    value.const_value = ir.Tensor(array.astype(np.float32), name=value.name)


def _name(value: ir.Value | None) -> str:
    return "" if value is None else str(value.name)


def _target(node: ir.Node) -> int:
    return int(node.attributes["to"].as_int())
