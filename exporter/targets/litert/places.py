"""Which constant of a float program holds which of the model's weights, found by its numbers; names for all tensors.

litert-torch names a tensor after the Python code that made it, hundreds of characters for each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.checkpoint.linear import weight_of, weighted_layers
from exporter.targets.litert.flatbuffer import floats_of, is_constant, operator, read_model, signatures, write_model

ROTARY = "rotary_emb"  # in the name of a table of positions, which is no weight
_LARGE = 256  # numbers: smaller constants are not looked for
Known = Mapping[tuple[Any, ...], Sequence[tuple[str, NDArray[np.float32]]]]


def name_tensors(converted: Path, named: Path, model: Any) -> dict[str, list[str]]:
    """Writes the file again with a name for each tensor, which no other tensor has in any signature.

    A constant that is the model's is called as the model calls it, between its signature's name and its number; inputs
    and outputs keep their names. Returns the layers that each constant is the weight of, by this name: several where
    weights are shared. A layer that the program does without, such as a pooler, is nowhere.
    """
    program, known = read_model(converted), _known(model)
    _share(program)
    for _, _, graph in signatures(program):
        fuse_biases(program, graph)
    layers = weighted_layers(model)
    found: dict[str, list[str]] = {}
    owners: dict[int, list[str]] = {}  # by the buffer
    for signature, definition, graph in signatures(program):
        outer = {one.tensorIndex: one.name.decode() for one in (*definition.inputs, *definition.outputs)}
        for index, tensor in enumerate(graph.tensors):
            if tensor.buffer not in owners:
                owners[tensor.buffer] = _owners(floats_of(program, tensor), known)
            mine = owners[tensor.buffer]
            tensor.name = f"{signature}/{mine[0] if mine else outer.get(index, '')}~{index}".encode()
            if modules := [name.removesuffix(".weight") for name in mine if name.removesuffix(".weight") in layers]:
                found[tensor.name.decode()] = modules
    write_model(program, named)
    return found


def _share(program: Any) -> None:
    """Lets tensors with the same numbers have one buffer: what is turned for a signature is turned for each of them."""
    first: dict[bytes, int] = {}
    same: dict[int, int] = {}
    for index, buffer in enumerate(program.buffers):
        if buffer.data is not None and len(buffer.data) >= 4 * _LARGE:
            same[index] = first.setdefault(sha256(buffer.data).digest(), index)
    for tensor in (tensor for graph in program.subgraphs for tensor in graph.tensors):
        tensor.buffer = same.get(tensor.buffer, tensor.buffer)
    for index in (index for index, kept in same.items() if kept != index):
        program.buffers[index].data, program.buffers[index].offset, program.buffers[index].size = None, 0, 0


def fuse_biases(program: Any, graph: Any) -> None:
    """Lets products add their own biases: a layer's outputs have a range; the converter leaves some biases apart."""
    readers = Counter(index for op in graph.operators for index in op.inputs)
    readers.update(graph.outputs)
    products = {op.outputs[0]: op for op in graph.operators if operator(program, op) == "FULLY_CONNECTED"}
    kept = []
    for op in graph.operators:
        if operator(program, op) != "ADD" or not _takes_bias(program, graph, op, products, readers):
            kept.append(op)
            continue
        [product], [bias] = ([one for one in op.inputs if (one in products) is made] for made in (True, False))
        layer = products[product]
        layer.inputs = [*layer.inputs[:2], bias]
        layer.builtinOptions.fusedActivationFunction = op.builtinOptions.fusedActivationFunction
        layer.outputs = list(op.outputs)
    graph.operators = kept


def _takes_bias(program: Any, graph: Any, op: Any, products: Mapping[int, Any], readers: Mapping[int, int]) -> bool:
    made = [one for one in op.inputs if one in products]
    if len(made) != 1 or readers[made[0]] != 1:
        return False
    layer = products[made[0]]
    has_bias = len(layer.inputs) > 2 and layer.inputs[2] >= 0
    [other] = [one for one in op.inputs if one not in products]
    tensor, outputs = graph.tensors[other], graph.tensors[made[0]].shape[-1]
    flat = is_constant(program, tensor) and list(tensor.shape) == [outputs]
    return flat and not has_bias and layer.builtinOptions.fusedActivationFunction == 0


def module_of(tensor: str) -> str:
    """What a constant is called in the model; "" where it is none of the model's."""
    return tensor.partition("/")[2].rpartition("~")[0].removesuffix(".weight")


def _known(model: Any) -> Known:
    """The model's layers' weights as a file has them, then its other parameters and buffers, by shape and first row."""
    found: dict[tuple[Any, ...], list[tuple[str, NDArray[np.float32]]]] = {}
    layers = {f"{name}.weight": _stored(layer) for name, layer in weighted_layers(model).items()}
    others = {name: one.detach().numpy() for name, one in model.named_parameters(remove_duplicate=False)}
    others |= {name: one.detach().numpy() for name, one in model.named_buffers() if one.dtype.is_floating_point}
    for name, value in (*layers.items(), *(item for item in others.items() if item[0] not in layers)):
        if value.size >= _LARGE:
            found.setdefault(_key(value), []).append((name, value))
    return found


def _stored(layer: Any) -> NDArray[np.float32]:
    """A linear layer's weight as [N, K], a convolution's as [N, height, width, C]; one of each channel by itself, which
    has C = 1, as [1, height, width, N]."""
    import torch

    weight = weight_of(layer)
    if isinstance(layer, torch.nn.Conv2d):
        apart = layer.groups > 1 and layer.groups == layer.in_channels
        weight = layer.weight.permute(1, 2, 3, 0) if apart else layer.weight.permute(0, 2, 3, 1)
    stored: NDArray[np.float32] = np.ascontiguousarray(weight.detach().numpy())
    return stored


def _key(value: NDArray[np.float32]) -> tuple[Any, ...]:
    return (value.shape, value[:1].tobytes())


def _owners(value: NDArray[np.float32] | None, known: Known) -> list[str]:
    """What holds these very numbers."""
    if value is None or value.size < _LARGE:
        return []
    return [name for name, other in known.get(_key(value), ()) if np.array_equal(value, other)]
