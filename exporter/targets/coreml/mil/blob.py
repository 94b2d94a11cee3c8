"""weight.bin: the tensors of an ML program, in "MIL blob storage", version 2.

A header of 64 bytes, then for each tensor a record of 64 bytes and its data, all little-endian and at multiples of 64.
https://github.com/apple/coremltools/blob/main/mlmodel/src/MILBlob/Blob/StorageFormat.hpp
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import BuildError

Array = NDArray[Any]

_RECORD = 64  # bytes of the header, and of each tensor's record
_VERSION = 2
_SENTINEL = 0xDEADBEEF

# By the number in a record: the type's name in MIL, and its bits.
_KINDS = {
    1: ("fp16", 16), 2: ("fp32", 32), 3: ("uint8", 8), 4: ("int8", 8), 5: ("bf16", 16), 6: ("int16", 16),
    7: ("uint16", 16), 8: ("int4", 4), 9: ("uint1", 1), 10: ("uint2", 2), 11: ("uint4", 4), 12: ("uint3", 3),
    13: ("uint6", 6), 14: ("int32", 32), 15: ("uint32", 32),
}  # fmt: skip

# How NumPy holds a whole number of bytes of each type; bfloat16, which it lacks, as its bits.
DTYPES = {
    "fp16": "<f2", "fp32": "<f4", "fp64": "<f8", "bf16": "<u2", "int8": "i1", "uint8": "u1", "int16": "<i2",
    "uint16": "<u2", "int32": "<i4", "uint32": "<u4", "int64": "<i8", "uint64": "<u8",
}  # fmt: skip
PACKED = {"int4": 4, "uint4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint6": 6}  # bits of those below a byte


@dataclass(frozen=True)
class Record:
    """A tensor in the file: its type's name, and where its data lies, in bytes. `unused`: bits at its end."""

    kind: str
    begin: int
    size: int
    unused: int

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        bits = next(bits for kind, bits in _KINDS.values() if kind == self.kind)
        return (self.size * 8 - self.unused) // bits


class BlobFile:
    """A weight file, mapped into memory. Raises BuildError for what is not one, or is shorter than it says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise BuildError(f"{path} is missing: the program's weights are in it; copy the whole .mlpackage folder")
        self._size = path.stat().st_size
        if self._size < _RECORD:
            raise BuildError(f"{path} is truncated: its {self._size} bytes are fewer than a weight file's header has")
        self._bytes: Array = np.memmap(path, np.uint8, "r")
        _, version = struct.unpack_from("<II", self._bytes.data, 0)
        if version != _VERSION:
            raise BuildError(f"{path} is no weight file that can be read: version {version}, not {_VERSION}")

    def record(self, offset: int) -> Record:
        """The tensor whose record begins at this byte."""
        if offset + _RECORD > self._size:
            raise BuildError(f"{self.path} is truncated: {self._size} bytes, and a tensor begins at byte {offset}")
        sentinel, number, size, begin, unused = struct.unpack_from("<IIQQQ", self._bytes.data, offset)
        if sentinel != _SENTINEL:
            raise BuildError(f"{self.path} is damaged: no tensor begins at byte {offset}, where the program has one")
        if number not in _KINDS:
            raise BuildError(f"{self.path} has a tensor of type {number}, which is not known, at byte {offset}")
        if begin + size > self._size:
            raise BuildError(f"{self.path} is truncated: {self._size} bytes, and a tensor ends at byte {begin + size}")
        kind, bits = _KINDS[number]
        # Before iOS 18 these bytes held anything, and no type had unused bits.
        return Record(kind, begin, size, unused if bits < 8 else 0)

    def data(self, record: Record) -> Array:
        """Its bytes [size], not copied."""
        return self._bytes[record.begin : record.begin + record.size]


def numbers(data: Array, kind: str, count: int) -> Array:
    """[count] numbers of a type, from bytes. Those below a byte as int8 or uint8, bfloat16 as float32."""
    if kind in PACKED:
        return _unpacked(data, PACKED[kind], count, signed=kind.startswith("int"))
    found = data.view(DTYPES[kind])[:count]
    return (found.astype(np.uint32) << 16).view(np.float32) if kind == "bf16" else found


def _unpacked(data: Array, bits: int, count: int, signed: bool) -> Array:
    """Fields of `bits` bits, the first in a byte's lowest; those of 3 and 6 bits run on into the next byte."""
    width = 3 if bits % 3 == 0 else 1  # bytes after which a field begins at a byte again
    padded = data if data.size % width == 0 else np.concatenate([data, np.zeros(-data.size % width, np.uint8)])
    rows = padded.reshape(-1, width)
    words = rows[:, 0] if width == 1 else rows.astype(np.uint32) @ np.array([1, 1 << 8, 1 << 16], np.uint32)
    fields = np.empty((len(rows), 8 * width // bits), np.uint8)
    for place in range(fields.shape[1]):
        fields[:, place] = (words >> (place * bits)) & ((1 << bits) - 1)
    found = fields.reshape(-1)[:count]
    if not signed:
        return found
    sign = 1 << (bits - 1)
    return ((found ^ sign).astype(np.int8) - np.int8(sign)).astype(np.int8)
