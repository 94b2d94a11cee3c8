"""Safetensors files written in one pass, with their hash made in a thread beside the disk and the arithmetic."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


class Digest:
    """A sha256 that is computed while its owner goes on: hashlib releases the GIL."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)

    @contextmanager
    def adding(self, data: Any) -> Iterator[None]:
        """Adds bytes during the block; they must not change before it ends."""
        done = self._thread.submit(self._sha256.update, data)
        try:
            yield
        finally:
            done.result()

    def add_whole(self, path: Path, size: int) -> None:
        """Adds the first bytes of a file."""
        with path.open("rb") as file:
            self._sha256.update(file.read(size))

    def hexdigest(self) -> str:
        self._thread.shutdown()
        return self._sha256.hexdigest()


def put(file: BinaryIO, block: Any, digest: Digest) -> None:
    """Writes bytes to an unbuffered file while they are hashed."""
    view, offset = memoryview(block), 0
    with digest.adding(view):
        while offset < len(view):
            offset += file.write(view[offset:])


def header(tensors: Iterable[tuple[str, str, tuple[int, ...], int]]) -> bytes:
    """A safetensors header of (name, dtype, shape, bytes): its length in 8 bytes, then JSON, padded to a multiple of 8.

    The format: https://github.com/huggingface/safetensors.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dtype, shape, size in tensors:
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_index(folder: Path, files: Mapping[str, Mapping[str, int]]) -> None:
    """Writes model.safetensors.index.json for {file: {tensor: bytes}}, where a loader needs one."""
    if set(files) == {"model.safetensors"}:
        return
    index = {
        "metadata": {"total_size": sum(size for tensors in files.values() for size in tensors.values())},
        "weight_map": {tensor: name for name, tensors in files.items() for tensor in tensors},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
