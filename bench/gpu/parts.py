"""A pack as parts: compressed archives, cut into pieces of a size, and the manifest that join.py checks."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.gpu import join

# Of SmolLM2's fp32 graph 71%, fp16 91%, int8 92% are left, at 40 MB/s; xz leaves 54%, 85%, 87%, and takes 5 to 9 MB/s.
_LEVEL = 1


class Cut(io.RawIOBase):
    """A file that is written as parts of at most `size` bytes."""

    def __init__(self, folder: Path, size: int, first: int = 0) -> None:
        self._folder, self._size, self._first = folder, size, first
        self._file: io.BufferedWriter | None = None
        self._room, self._hash = 0, hashlib.sha256()
        self.parts: list[dict[str, Any]] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            if not self._room:
                self._next()
            piece = view[done : done + self._room]
            assert self._file is not None
            self._file.write(piece)
            self._hash.update(piece)
            self._room -= len(piece)
            done += len(piece)
        return done

    def _next(self) -> None:
        self._finish()
        name = f"part-{self._first + len(self.parts):03}"
        self._file = (self._folder / name).open("wb")
        self._room, self._hash = self._size, hashlib.sha256()
        self.parts.append({"name": name})

    def _finish(self) -> None:
        if self._file is not None:
            self._file.close()
            self.parts[-1] |= {"bytes": self._size - self._room, "sha256": self._hash.hexdigest()}
            self._file = None

    def close(self) -> None:
        self._finish()
        super().close()


def write_parts(volumes: Mapping[str, Mapping[str, Path]], folder: Path, size: int) -> dict[str, Any]:
    """Writes files, by their names in the pack, as parts into `folder`, with join.py and the manifest; returns that.

    `volumes`: the archives, in order, by their names. Each can be joined when its own parts have come, and the first.
    """
    folder.mkdir(parents=True)
    told: list[dict[str, Any]] = []
    for name, files in volumes.items():
        cut = Cut(folder, size, sum(len(volume["parts"]) for volume in told))
        with (
            io.BufferedWriter(cut) as whole,
            gzip.open(whole, "wb", compresslevel=_LEVEL) as packed,
            tarfile.open(fileobj=packed, mode="w|") as archive,
        ):
            for file in sorted(files):
                archive.add(files[file].resolve(), file, recursive=False)
        unpacked = sum(file.stat().st_size for file in files.values())
        told.append({"name": name, "parts": cut.parts, "unpacked_bytes": unpacked})
    parts = [part for volume in told for part in volume["parts"]]
    key = hashlib.sha256("".join(part["sha256"] for part in parts).encode()).hexdigest()
    manifest = {"schema_version": 2, "key": key, "bytes": sum(part["bytes"] for part in parts), "volumes": told}
    (folder / join.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(join.__file__, folder / "join.py")
    return manifest
