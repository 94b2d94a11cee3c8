"""The header of a GGUF file: its fields and what its tensors are called, shaped and typed; no weight is read.

gguf's own reader makes an array of each of a vocabulary's hundred thousand strings, which takes seconds for each file.
The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Tensor:
    """`shape` has the columns first, as ggml has it; `kind` is a number of ggml's enum ggml_type."""

    name: str
    shape: tuple[int, ...]
    kind: int


@dataclass(frozen=True)
class Header:
    """`fields` are the scalar and the text ones; arrays are left out."""

    fields: dict[str, Any]
    tensors: tuple[Tensor, ...]


def read_header(file: Path) -> Header:
    """Of a file that llama.cpp wrote. Raises ValueError for anything but little-endian GGUF, version 2 or 3."""
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(data)
        magic, version = cursor.take("4sI")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"{file} is not GGUF: {magic!r}, version {version}")
        tensors, fields = cursor.take("QQ")
        found = {}
        for _ in range(fields):
            name = cursor.text()
            [kind] = cursor.take("I")
            value = cursor.value(kind)
            if kind != _ARRAY:
                found[name] = value
        return Header(found, tuple(cursor.tensor() for _ in range(tensors)))


class _Cursor:
    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 0

    def take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self._data, self._at)
        self._at += struct.calcsize("<" + layout)
        return values

    def text(self) -> str:
        [length] = self.take("Q")
        self._at += length
        return self._data[self._at - length : self._at].decode()

    def value(self, kind: int) -> Any:
        """A scalar or a text; None for an array, which is passed over."""
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.take(_SCALARS[kind])[0]
        inner, count = self.take("IQ")
        if inner in _SCALARS:
            self._at += count * struct.calcsize("<" + _SCALARS[inner])
        else:
            for _ in range(count):
                self.value(inner)
        return None

    def tensor(self) -> Tensor:
        name = self.text()
        [dimensions] = self.take("I")
        shape = self.take(f"{dimensions}Q")
        kind, _ = self.take("IQ")
        return Tensor(name, shape, kind)
