"""The tensors of a checkpoint's folder, read one at a time, and written as they come: what no memory must hold whole.

A safetensors file (https://github.com/huggingface/safetensors) is a header with each tensor's place, then the data; the
places follow from dtypes and shapes, so that the header can be written before there is any value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.checkpoint.shards import header, write_index
from exporter.checkpoint.weights import Stored, stored_tensors, weight_files
from exporter.errors import JobError

if TYPE_CHECKING:
    import torch

_BLOCK = 1 << 22  # bytes of a tensor that are read at a time, about
_ALIGNED = 64  # rows in a block are a multiple of this: whole blocks of every quantization

Step = Callable[[int, int], None]  # (bytes written, bytes in all)


class Tensors:
    """`Tensors(folder).entries` says what a checkpoint holds. Tensors are read into memory of their own: what a mapped
    file leaves resident counts for the process until the mapping goes."""

    def __init__(self, folder: Path) -> None:
        self.files = weight_files(folder)
        self.entries = stored_tensors(folder)

    def read(self, name: str) -> torch.Tensor:
        """A tensor, whole."""
        entry = self.entries[name]
        return next(_blocks(entry, entry.shape[0] if entry.shape else 1))

    def rows(self, name: str) -> Iterator[torch.Tensor]:
        """A tensor in blocks of rows; a scalar as it is."""
        entry = self.entries[name]
        row = math.prod(entry.shape[1:]) * torch_dtype(entry.dtype).itemsize
        return _blocks(entry, max(1, _BLOCK // max(1, row) // _ALIGNED) * _ALIGNED)


def _blocks(entry: Stored, step: int) -> Iterator[torch.Tensor]:
    import torch

    dtype, rest = torch_dtype(entry.dtype), entry.shape[1:]
    count = entry.shape[0] if entry.shape else 1
    with entry.path.open("rb") as file:
        file.seek(entry.begin)
        for start in range(0, max(count, 1), max(step, 1)):
            shape = (min(step, count - start), *rest) if entry.shape else ()
            block = torch.empty(shape, dtype=dtype)
            file.readinto(block.view(-1).view(torch.uint8).numpy().data)
            yield block


@dataclass(frozen=True)
class Planned:
    """A tensor to be written: its dtype as safetensors writes it, its shape, and what yields its values in blocks."""

    dtype: str
    shape: tuple[int, ...]
    rows: Callable[[], Iterator[torch.Tensor]]


def write(folder: Path, files: Mapping[str, Mapping[str, Planned]], progress: Step) -> None:
    """Writes safetensors files (name: tensors), and the index where a loader needs one. Values are cast to the planned
    dtype block by block. Raises AssertionError where a tensor's rows are not what was planned."""
    total = sum(_size(planned) for tensors in files.values() for planned in tensors.values())
    done = 0
    for name, tensors in files.items():
        with (folder / name).open("wb") as file:
            sizes = ((key, planned.dtype, planned.shape, _size(planned)) for key, planned in tensors.items())
            file.write(header(sizes))
            for key, planned in tensors.items():
                written = 0
                for piece in _pieces(planned):
                    written += file.write(piece)
                    progress(done + written, total)
                assert written == _size(planned), f"{key}: {written} bytes of {_size(planned)}"
                done += written
    write_index(folder, {name: {key: _size(planned) for key, planned in held.items()} for name, held in files.items()})


def torch_dtype(name: str) -> torch.dtype:
    """What torch calls one of safetensors' dtypes: BF16 is torch.bfloat16. Raises JobError."""
    import torch

    known = {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
        "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    }  # fmt: skip
    if name not in known:
        raise JobError(f"the checkpoint holds tensors of dtype {name}, which no float model has; give the float one")
    return known[name]


def _size(planned: Planned) -> int:
    return math.prod(planned.shape) * torch_dtype(planned.dtype).itemsize


def _pieces(planned: Planned) -> Iterator[memoryview]:
    """The bytes of a tensor, cast a block at a time."""
    import torch

    dtype = torch_dtype(planned.dtype)
    for rows in planned.rows():
        flat = rows.contiguous().view(-1)
        for start in range(0, len(flat), _BLOCK // 4):
            yield flat[start : start + _BLOCK // 4].to(dtype).view(torch.uint8).numpy().data
