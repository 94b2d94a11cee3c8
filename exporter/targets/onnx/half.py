"""float16 by onnxruntime's own converter, which is shown the graph without its weights.

The converter wants a whole ModelProto in memory. The large weights are taken out and declared as inputs first, and put
back as float16 afterwards, one by one while they are written, so that neither copy is ever whole in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporter.errors import BuildError
from exporter.targets.onnx_graph.largest import MARGIN, largest_of, weights_beyond
from exporter.targets.onnx_graph.shell import shell

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from exporter.runner import Sample

_FLOAT, _FLOAT16, _INTEGERS = 1, 10, (6, 7)  # as onnx.TensorProto numbers them


LARGEST = float(np.finfo(np.float16).max)
_MASKS = 1e30  # what is larger stands for infinity in a mask, and the converter cuts it


def overflowing(
    model: ir.Model,
    windows: Sample | None,
    scratch: Path,
    threads: int,
    beside: Callable[[Sample], Mapping[str, Sample]] | None = None,
) -> dict[str, float]:
    """The values of a float graph that float16 cannot hold on token ids [windows, window], and how large they are.

    `model` is spent. Weights are found too, and without windows only they. `beside` is largest_of's.
    """
    found = dict(weights_beyond(model, LARGEST))
    if windows is None:
        return found
    largest = largest_of(model, _floats(model), windows, scratch, threads, beside)
    return found | {name: it for name, it in largest.items() if not it <= LARGEST / MARGIN and not it >= _MASKS}


def _floats(model: ir.Model) -> list[str]:
    """The float32 values of the nodes, by what ONNX Runtime says: onnx does not know the types of its operators."""
    import onnx
    import onnxruntime

    proto, _ = shell(model)
    names = [name for node in proto.graph.node for name in node.output if name]
    given = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [value.name for value in session.get_outputs() if value.type == "tensor(float)"]


def half(model: ir.Model, beyond: Collection[str] = ()) -> ir.Model:
    """The graph in float16, with float32 inputs and outputs, the KV cache's too: the types that clients feed.

    `beyond`: names of values and weights that float16 cannot hold; what reads or writes one stays in float32. Raises
    BuildError when another weight is beyond float16's range.
    """
    import onnx
    import onnx_ir as ir
    from onnxruntime.transformers.float16 import convert_float_to_float16

    kept = [str(value.name) for value in (*model.graph.inputs, *model.graph.outputs)]
    proto, weights = shell(model)
    # Types of the values in between tell the converter where an operator that stays in float32 needs casts.
    proto = onnx.shape_inference.infer_shapes(proto)
    wide = frozenset(beyond) | _become_integers(proto)
    kept += [name for name in weights if name in wide]
    stay = []
    for number, node in enumerate(proto.graph.node):
        if not wide.isdisjoint((*node.input, *node.output)):
            node.name = node.name or f"node_{number}"
            stay.append(node.name)
    halved = convert_float_to_float16(proto, keep_io_types=kept, disable_shape_infer=True, node_block_list=stay)
    _drop_doubles(halved)
    converted: ir.Model = ir.from_proto(halved)
    _stay_wide(converted, {*stay}, {name for name in weights if name in wide})
    for value in [value for value in converted.graph.inputs if value.name in weights]:
        name, tensor = str(value.name), weights[str(value.name)]
        converted.graph.inputs.remove(value)
        if name in wide:
            value.const_value = tensor
            converted.graph.register_initializer(value)
            continue
        lazy = partial(_cast, name, tensor)
        value.const_value = ir.LazyTensor(lazy, dtype=ir.DataType.FLOAT16, shape=value.shape or ir.Shape(()), name=name)
        converted.graph.register_initializer(value)
    converted.graph.sort()  # the converter leaves its casts at the end
    return converted


def _become_integers(proto: onnx.ModelProto) -> set[str]:
    """The float values that only whole numbers are made of, such as the logarithms of distances that T5 puts in
    buckets: one that is rounded to float16 first is in another bucket."""
    graph = proto.graph
    kinds = {info.name: info.type.tensor_type.elem_type for info in (*graph.input, *graph.value_info)}
    makers = {name: node for node in graph.node for name in node.output}
    asked = [node.input[0] for node in graph.node if node.op_type == "Cast" and _to_integers(node)]
    found: set[str] = set()
    while asked:
        name = asked.pop()
        if name not in found and name in makers and kinds.get(name) == _FLOAT:
            found.add(name)
            asked += makers[name].input
    return found


def _to_integers(cast: onnx.NodeProto) -> bool:
    return any(attribute.name == "to" and attribute.i in _INTEGERS for attribute in cast.attribute)


def _drop_doubles(proto: onnx.ModelProto) -> None:
    """The converter casts a value once for each of its readers that stay in float32, under one name."""
    made: set[str] = set()
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    for node in nodes:
        if node.op_type != "Cast" or node.output[0] not in made:
            proto.graph.node.append(node)
        made.update(node.output)


def _stay_wide(model: ir.Model, names: set[str], weights: set[str]) -> None:
    """Between two nodes in float32 the converter casts to float16 and back, which is what must not be."""
    for node in list(model.graph):
        inner = node.inputs[0].producer() if node.op_type == "Cast" and node.inputs[0] is not None else None
        if inner is None or inner.op_type != "Cast" or _to(node) != _FLOAT or _to(inner) != _FLOAT16:
            continue
        value = inner.inputs[0]
        assert value is not None
        maker = value.producer()
        if str(value.name) in weights or (maker is not None and maker.name in names):
            node.outputs[0].replace_all_uses_with(value, replace_graph_outputs=False)


def _to(cast: ir.Node) -> int:
    return int(cast.attributes["to"].as_int())


def _cast(name: str, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    import onnx_ir as ir

    floats = tensor.numpy()
    largest = float(np.abs(floats).max())
    if largest > LARGEST:
        raise BuildError(
            f"the weight {name} holds {largest:.3g}, beyond float16's range; use bf16 or fp32 for this model"
        )
    return ir.Tensor(floats.astype(np.float16), name=name)
