"""Types and constants of a program, from the messages that hold them.

https://github.com/apple/coremltools/blob/main/mlmodel/format/MIL.proto
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from exporter.errors import BuildError
from exporter.targets.coreml.mil.blob import DTYPES, PACKED, Array, numbers
from exporter.targets.coreml.mil.package import Package

# The enum DataType, by MIL's own names.
KINDS = {
    1: "bool", 2: "string", 10: "fp16", 11: "fp32", 12: "fp64", 13: "bf16", 21: "int8", 22: "int16", 23: "int32",
    24: "int64", 25: "int4", 31: "uint8", 32: "uint16", 33: "uint32", 34: "uint64", 35: "uint4", 36: "uint2",
    37: "uint1", 38: "uint6", 39: "uint3",
}  # fmt: skip
FLOATS = ("fp16", "fp32", "fp64", "bf16")


@dataclass(frozen=True)
class Type:
    """Of a tensor: its numbers' type, and its shape with None for what is known when it runs only."""

    kind: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.kind}[{', '.join('?' if size is None else str(size) for size in self.shape)}]"


def read_type(message: Any) -> Type:
    """Of a ValueType; a state's is that of the tensor in it. Lists, tuples and dictionaries are of the kind "other"."""
    which = message.WhichOneof("type")
    if which == "stateType":
        return read_type(message.stateType.wrappedType)
    if which != "tensorType":
        return Type("other", ())
    tensor = message.tensorType
    sizes = (d.constant.size if d.WhichOneof("dimension") == "constant" else None for d in tensor.dimensions)
    return Type(KINDS.get(tensor.dataType, "other"), tuple(sizes))


def read_value(message: Any, package: Package) -> Any:
    """A constant: an array of the type it is stored in (below a byte, a byte each), or a scalar; lists as lists."""
    if message.WhichOneof("value") == "blobFileValue":
        return _stored(message, package)
    immediate = message.immediateValue
    which = immediate.WhichOneof("value")
    if which in ("list", "tuple"):
        return [read_value(item, package) for item in getattr(immediate, which).values]
    if which != "tensor":
        raise BuildError(f"{package.path} has a constant of the kind {which}, which is not supported")
    kind = read_type(message.type)
    return _shaped(_immediate(immediate.tensor, kind, package), kind, package)


def stored_size(message: Any, package: Package) -> tuple[str, int]:
    """A constant's type and bytes, as it is stored."""
    kind = read_type(message.type)
    if message.WhichOneof("value") == "blobFileValue":
        record = package.blob(message.blobFileValue.fileName).record(message.blobFileValue.offset)
        return record.kind, record.size
    count = math.prod(size or 0 for size in kind.shape)
    if kind.kind in PACKED:
        return kind.kind, -(-count * PACKED[kind.kind] // 8)
    return kind.kind, count * (np.dtype(DTYPES[kind.kind]).itemsize if kind.kind in DTYPES else 1)


def _stored(message: Any, package: Package) -> Any:
    blob = package.blob(message.blobFileValue.fileName)
    record = blob.record(message.blobFileValue.offset)
    kind = read_type(message.type)
    count = math.prod(size or 0 for size in kind.shape)
    if record.kind != kind.kind or record.count != count:
        raise BuildError(f"{blob.path} is damaged: the program has {kind} where it holds {record.count} {record.kind}")
    return _shaped(numbers(blob.data(record), kind.kind, count), kind, package)


def _immediate(tensor: Any, kind: Type, package: Package) -> Array:
    which = tensor.WhichOneof("value")
    if which is None:  # what is empty need not be written
        return np.zeros(0, DTYPES.get(kind.kind, "i4"))
    if which == "bytes":
        count = math.prod(size or 0 for size in kind.shape)
        return numbers(np.frombuffer(tensor.bytes.values, np.uint8), kind.kind, count)
    if which == "strings":
        return np.array(list(tensor.strings.values), object)
    wanted = "bool" if which == "bools" else DTYPES.get(kind.kind)
    if wanted is None:
        raise BuildError(f"{package.path} has a constant of type {kind}, which is not supported")
    return np.array(getattr(tensor, which).values, wanted)


def _shaped(found: Array, kind: Type, package: Package) -> Any:
    if found.size != math.prod(size or 0 for size in kind.shape):
        raise BuildError(f"{package.path} is damaged: a constant of type {kind} has {found.size} numbers")
    return found.reshape([size or 0 for size in kind.shape]) if kind.shape else found[0]
