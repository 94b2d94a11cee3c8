"""The weight matrices of a written file and the bits that each really has, from the file alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from exporter.targets.litert.flatbuffer import bits_of, is_constant, operator, read_model, signatures
from exporter.targets.litert.places import ROTARY, module_of
from exporter.types import Weight

FILE = "model.tflite"
_LOOKUPS = ("EMBEDDING_LOOKUP", "GATHER")
# Where an operator takes a weight, and what may stand between it and its numbers.
_WEIGHTS: Mapping[str, Sequence[int]] = {
    "FULLY_CONNECTED": (1,),
    "BATCH_MATMUL": (0, 1),
    "CONV_2D": (1,),
    "DEPTHWISE_CONV_2D": (1,),
    "EMBEDDING_LOOKUP": (1,),
    "GATHER": (0,),
}
_THROUGH = ("DEQUANTIZE", "TRANSPOSE", "RESHAPE", "CAST", "MUL")
_AFTER = ("ADD", "MUL", "DIV", "TANH", "RESHAPE", "DEQUANTIZE", "QUANTIZE")  # what may follow a head's product
_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
_BLOCK = 32


def weights_of(folder: Path, files: Sequence[str] = ()) -> list[Weight]:
    """Each matrix that is multiplied with or looked up, once for all signatures; a table of rotations is none."""
    program = read_model(folder / FILE)
    found: dict[int, Weight] = {}
    for _, _, graph in signatures(program):
        makers = {index: op for op in graph.operators for index in op.outputs}
        heads = set(_heads(program, graph, makers))
        for op in graph.operators:
            kind = operator(program, op)
            for place in _WEIGHTS.get(kind, ()):
                convolution = kind in _CONVOLUTIONS
                tensor = _constant(program, graph, makers, op.inputs[place], convolution)
                if tensor is None or ROTARY in tensor.name.decode():
                    continue
                # What is looked up in a stack is an expert's matrix, to be multiplied with.
                table = (kind in _LOOKUPS and len(tensor.shape) < 3) or op.outputs[0] in heads
                known = found.get(tensor.buffer)
                weight = known or Weight(
                    _name(tensor), math.prod(map(int, tensor.shape)), bits_of(tensor), table, _why(tensor, convolution)
                )
                found[tensor.buffer] = replace(weight, table=weight.table or table)
    return list(found.values())


def _name(tensor: Any) -> str:
    name: str = tensor.name.decode()
    return module_of(name) or name


def _constant(program: Any, graph: Any, makers: Mapping[int, Any], index: int, convolution: bool) -> Any:
    """The tensor of numbers behind an operator's input, where it is a matrix of them or a convolution's kernels."""
    if index in makers and operator(program, makers[index]) in _THROUGH:
        behind = (_constant(program, graph, makers, one, convolution) for one in makers[index].inputs if one >= 0)
        return next((one for one in behind if one is not None), None)
    tensor = graph.tensors[index]
    sizes = list(tensor.shape) if tensor.shape is not None else []
    matrix = len(sizes) == 4 if convolution else len(sizes) > 1 and 1 not in sizes[-2:]
    return tensor if is_constant(program, tensor) and matrix else None


def _why(tensor: Any, convolution: bool) -> str:
    """What keeps it wider, where that shows."""
    if convolution:
        return "a convolution, which has 8 bits at least" if bits_of(tensor) > 4 else ""
    if bits_of(tensor) == 32 and len(tensor.shape) > 2:
        return "experts, or another stack of matrices: they stay in float"
    columns = int(tensor.shape[-1])
    return (
        f"rows of {columns} are no multiple of the block of {_BLOCK}"
        if columns % _BLOCK and bits_of(tensor) > 4
        else ""
    )


def _heads(program: Any, graph: Any, makers: Mapping[int, Any]) -> Iterator[int]:
    """The products of text generation whose output is the logits, but for a scale or a cap."""
    if any(b"kv_cache" in graph.tensors[index].name for index in graph.inputs):
        for index in graph.outputs:
            if b"logits" in graph.tensors[index].name:
                while index in makers and operator(program, makers[index]) in _AFTER:
                    index = next((one for one in makers[index].inputs if one in makers), -1)
                yield index
