"""The weight matrices of a written package and the bits that each really has, from the program alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.targets.coreml.convert import PACKAGE
from exporter.targets.coreml.sparse import SPARSE, SPARSE_CODES
from exporter.types import Weight

SPECIFICATION = Path("Data", "com.apple.CoreML", "model.mlmodel")
# Where an operator takes a weight, and where a constant operator has its numbers.
_WEIGHTS: Mapping[str, Sequence[str]] = {
    "linear": ("weight",),
    "matmul": ("x", "y"),
    "conv": ("weight",),
    "gather": ("x",),
}
_NUMBERS = {
    "const": "val", "constexpr_affine_dequantize": "quantized_data", "constexpr_blockwise_shift_scale": "data",
    "constexpr_lut_to_dense": "indices", SPARSE: "nonzero_data", SPARSE_CODES: "nonzero_data",
}  # fmt: skip
_AFTER = ("add", "cast", "mul", "real_div", "tanh")  # what may follow a head's product
_ROTARY = "rotary_emb_"  # a table of positions, which is no weight
_BLOCK = 32


def weights_of(folder: Path, files: Sequence[str] = ()) -> list[Weight]:
    """Each matrix that is multiplied with or looked up, once; a rotary table or a mask is none."""
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model()
    spec.ParseFromString((folder / PACKAGE / SPECIFICATION).read_bytes())
    [function] = spec.mlProgram.functions.values()
    block = function.block_specializations[function.opset]
    makers = {output.name: op for op in block.operations for output in op.outputs}
    heads = set(_heads(block, makers))
    found: dict[str, Weight] = {}
    tables = set()
    for op in block.operations:
        for place in _WEIGHTS.get(op.type, ()):
            name = _name(op, place)
            constant = _constant(name, makers, op.type == "conv")
            if constant is None or _ROTARY in name:
                continue
            # What is looked up in a stack is an expert's matrix, to be multiplied with.
            if (op.type == "gather" and len(constant.shape) < 3) or op.outputs[0].name in heads:
                tables.add(name)
            found.setdefault(name, Weight(name, math.prod(constant.shape), constant.bits, False, constant.why))
    return [Weight(one.name, one.numbers, one.bits, name in tables, one.why) for name, one in found.items()]


@dataclass(frozen=True)
class _Constant:
    shape: tuple[int, ...]
    bits: float
    why: str


def _name(op: Any, place: str) -> str:
    """The value that an operator is given in a place; "" where it is written into the operator."""
    bound = list(op.inputs[place].arguments) if place in op.inputs else []
    return bound[0].name if bound else ""


def _constant(name: str, makers: Mapping[str, Any], convolution: bool) -> _Constant | None:
    """What a value is, where it is a matrix of numbers that do not change, or a convolution's kernels."""
    maker = makers.get(name)
    if maker is None or maker.type not in _NUMBERS:
        return None
    shape = _shape(maker.outputs[0].type)
    columns = list(shape)[-2:]
    if len(columns) < 2 or (1 in columns and not convolution):
        return None
    bits = _sparse_bits(maker, math.prod(shape), makers) if maker.type == SPARSE else _stored(maker, makers)[0]
    if convolution:
        return _Constant(shape, bits, "a convolution, which has 8 bits at least" if bits > 6 else "")
    if maker.type == "const" and len(shape) > 2:
        return _Constant(shape, bits, "experts, or another stack of matrices: they stay in float")
    whole = maker.type == "const" and min(shape) % _BLOCK
    return _Constant(shape, bits, f"rows of {columns[-1]} are no multiple of the block of {_BLOCK}" if whole else "")


def _sparse_bits(op: Any, numbers: int, makers: Mapping[str, Any]) -> float:
    """The mean bits of a sparse matrix's numbers: one in the mask for each, and those that are not 0."""
    codes = makers.get(_name(op, "nonzero_data"), op)
    bits, [used] = _stored(codes if codes.type == SPARSE_CODES else op, makers)
    return 1 + bits * used / numbers


def _stored(op: Any, makers: Mapping[str, Any]) -> tuple[int, tuple[int, ...]]:
    """The bits and the shape of an operator's numbers: they are an attribute, written in place, or a constant."""
    from coremltools.proto import MIL_pb2

    place = _NUMBERS[op.type]
    if place in op.attributes:
        type_ = op.attributes[place].type
    else:
        bound = op.inputs[place].arguments[0]
        type_ = bound.value.type if bound.WhichOneof("binding") == "value" else makers[bound.name].outputs[0].type
    kind = MIL_pb2.DataType.Name(type_.tensorType.dataType)  # such as INT4
    return int(re.sub(r"\D", "", kind) or 8), _shape(type_)


def _shape(type_: Any) -> tuple[int, ...]:
    return tuple(one.constant.size for one in type_.tensorType.dimensions)


def _heads(block: Any, makers: Mapping[str, Any]) -> Iterator[str]:
    """The products whose output is the program's, but for a bias, a scale or a cap."""
    for name in block.outputs[:1]:
        while name in makers and makers[name].type in _AFTER:
            inputs = (_name(makers[name], place) for place in ("x", "y"))
            name = next((one for one in inputs if one in makers and makers[one].type not in _NUMBERS), "")
        if name in makers and makers[name].type in _WEIGHTS:
            yield name
