"""The weight matrices of a written graph and the bits that each really has, from the graph alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.types import Weight

if TYPE_CHECKING:
    import onnx

# Where an operator takes a weight.
_WEIGHTS: Mapping[str, Sequence[int]] = {
    "MatMul": (0, 1), "Gemm": (0, 1), "FusedMatMul": (0, 1), "MatMulInteger": (1,), "MatMulNBits": (1,),
    "Conv": (1,), "Gather": (0,), "GatherBlockQuantized": (0,), "MoE": (2, 4, 6), "QMoE": (2, 5, 8),
}  # fmt: skip
_LOOKUPS = ("Gather", "GatherBlockQuantized")
_VIEWS = ("Cast", "DequantizeLinear", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
_AFTER = ("Add", "Cast", "Div", "Identity", "Mul", "Reshape", "Tanh")  # what may follow a head's product
_BITS_OF = {"MatMulNBits": "bits", "GatherBlockQuantized": "bits", "QMoE": "expert_weight_bits"}
_BITS = {1: 32, 10: 16, 16: 16, 2: 8, 3: 8, 21: 4, 22: 4, 17: 8, 18: 8, 19: 8, 20: 8, 11: 64}  # by TensorProto's types
_BLOCK = 32


def weights_of(model_onnx: Path) -> list[Weight]:
    """Each matrix that is multiplied with or looked up, once; a rotary table or a mask is none."""
    import onnx

    graph = onnx.load(model_onnx, load_external_data=False).graph
    return [use.weight for use in uses_of(graph)]


@dataclass(frozen=True)
class Use:
    """A weight matrix where the graph takes it first. `behind`: the views between the tensor and the node's operand.

    `turned`: one of them is a transposition. `place`: which operand of the node it is.
    """

    weight: Weight
    node: onnx.NodeProto
    place: int
    tensor: onnx.TensorProto
    behind: tuple[onnx.NodeProto, ...]
    turned: bool


def uses_of(graph: onnx.GraphProto) -> list[Use]:
    """Each matrix once, where it is taken first; a table wherever it is one."""
    makers = {name: node for node in graph.node for name in node.output}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    heads = set(_heads(graph, makers))
    found: dict[str, Use] = {}
    tables = set()
    for node in graph.node:
        for place in _WEIGHTS.get(node.op_type, ()):
            operand = node.input[place] if place < len(node.input) else ""
            behind = _behind(operand, makers)
            tensor = tensors.get(behind[-1].input[0] if behind else operand)
            if tensor is None or not (_is_matrix(tensor) or (node.op_type == "Conv" and tensor.data_type in _BITS)):
                continue
            experts = len(tensor.dims) > 2 and node.op_type != "Conv"
            if (node.op_type in _LOOKUPS and not experts) or node.output[0] in heads:
                tables.add(tensor.name)
            turned = sum(one.op_type == "Transpose" for one in behind) % 2 == 1
            use = Use(_weight(node, tensor, turned), node, place, tensor, tuple(behind), turned)
            found.setdefault(tensor.name, use)
    return [replace(use, weight=replace(use.weight, table=name in tables)) for name, use in found.items()]


def _behind(name: str, makers: Mapping[str, onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The views that a value is made by, from it back to what they are views of."""
    found = []
    while name in makers and makers[name].op_type in _VIEWS:
        found.append(makers[name])
        name = makers[name].input[0]
    return found


def _is_matrix(tensor: onnx.TensorProto) -> bool:
    return len(tensor.dims) > 1 and min(tensor.dims[-2:]) > 1 and tensor.data_type in _BITS


def _weight(node: onnx.NodeProto, tensor: onnx.TensorProto, turned: bool) -> Weight:
    stored, packed = _BITS[tensor.data_type], _BITS_OF.get(node.op_type)
    bits = next((one.i for one in node.attribute if one.name == packed), 4) if packed else stored
    numbers = math.prod(tensor.dims) * stored // bits
    return Weight(tensor.name, numbers, bits, False, _why(node, tensor, turned) if bits > 8 else "")


def _why(node: onnx.NodeProto, tensor: onnx.TensorProto, turned: bool) -> str:
    """Why a matrix may be in float: what blocks and operators cannot hold, whatever was asked for."""
    if node.op_type == "Conv":
        return "a convolution that was kept in float"
    if len(tensor.dims) > 2:
        return "experts, or another stack of matrices: they stay in float"
    across = node.op_type in _LOOKUPS or any(one.name == "transB" and one.i for one in node.attribute)
    inputs = tensor.dims[1 if across != turned else 0]
    return f"rows of {inputs} are no multiple of the block of {_BLOCK}" if inputs % _BLOCK else ""


def _heads(graph: onnx.GraphProto, makers: Mapping[str, onnx.NodeProto]) -> Iterator[str]:
    """The products whose output is the graph's, but for a bias, a scale or a cap."""
    for value in graph.output[:1]:
        name = value.name
        while name in makers and makers[name].op_type in _AFTER:
            name = next((one for one in makers[name].input if one in makers), "")
        if name in makers and makers[name].op_type in _WEIGHTS:
            yield name
