"""What can be known of a checkpoint's weights without torch: they are safetensors, whole, and finite.

The format is at https://github.com/huggingface/safetensors: 8 bytes of little-endian header length, a JSON header with
each tensor's dtype, shape and offsets, then the data.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.checkpoint.instead import refuse_others
from exporter.errors import JobError

# The bits of the exponent, all ones in a NaN or an infinity, read as an unsigned integer of the same width.
_EXPONENTS: dict[str, tuple[Any, int]] = {
    "F64": (np.uint64, 0x7FF0000000000000),
    "F32": (np.uint32, 0x7F800000),
    "BF16": (np.uint16, 0x7F80),
    "F16": (np.uint16, 0x7C00),
}
FLOAT_BYTES = {name: kind().itemsize for name, (kind, _) in _EXPONENTS.items()}
_CHUNK = 1 << 24
_ONCE = (
    "import json, sys; from safetensors.torch import load_file as l, save_file as s; "
    "m = json.load(open('{stem}.safetensors.index.json'))['weight_map']; [s({{k: v for k, v in l(f).items() "
    "if m.get(k) == f}}, sys.argv[1] + '/' + f, {{'format': 'pt'}}) for f in set(m.values())]"
)


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies: `begin` and `end` are offsets in its file. `dtype` is safetensors' name, such as BF16."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)

    def prefetch(self) -> None:
        """Has the system read the tensor's bytes ahead, where it can, while something else is computed."""
        if hasattr(os, "posix_fadvise"):
            with self.path.open("rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), self.begin, self.end - self.begin, os.POSIX_FADV_WILLNEED)

    def read(self, into: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """The tensor's bytes, read and not mapped: mapped pages would count as this process's memory.

        `into`: an array to fill, that is at least as long. Raises JobError for a file that ends early.
        """
        size = self.end - self.begin
        data = np.empty(size, np.uint8) if into is None else into[:size]  # NumPy asks for huge pages
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.begin)
            view, done = data.data, 0
            while done < len(data):
                got = file.readinto(view[done:])
                if not got:
                    raise JobError(f"{self.path} ended early: it was changed while it was read; run again")
                done += got
        return data


@dataclass(frozen=True)
class Weights:
    """The weights of a folder: one hash over all files, the number of stored parameters, and the dtypes."""

    sha256: str
    parameters: int
    dtypes: tuple[str, ...]
    bytes: int


def again(folder: Path) -> str:
    """How a file of a folder is got whole: a download is made again, what a training saved is copied or saved again."""
    downloaded = any(part.startswith("models--") for part in folder.absolute().parts)
    return "download the model again" if downloaded else "copy it again from where it was saved, or save it again"


def weight_files(folder: Path, stem: str = "model") -> list[Path]:
    """The safetensors files of a checkpoint ("model") or an adapter ("adapter_model"), in order. Raises JobError.

    Those that transformers and PEFT read: one whole file goes before an index, which an earlier save left there.
    """
    index, whole = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
    files = [folder / name for name in sorted(set(_weight_map(index).values()))] if index.is_file() else [whole]
    if whole.is_file():
        files = [whole]
    missing = [path.name for path in files if not path.is_file()]
    if not missing:
        return files
    if not any(path.is_file() for path in files):
        refuse_others(folder, stem, again(folder))
    raise JobError(f"{folder} lacks {', '.join(missing)}; {again(folder)}, or give another folder")


def spare_files(folder: Path) -> list[Path]:
    """The safetensors files named like a model's, and the index, that are not read: an earlier save left them there."""
    used = weight_files(folder)
    spare = [path for path in sorted(folder.glob("model*.safetensors")) if path not in used]
    index = folder / "model.safetensors.index.json"
    return spare + ([index] if index.is_file() and used == [folder / "model.safetensors"] else [])


def _weight_map(index: Path) -> dict[str, str]:
    try:
        found = {
            str(name): str(file) for name, file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()
        }
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise JobError(f"{index} is not a safetensors index; {again(index.parent)}") from error
    if outside := next((file for file in found.values() if Path(file).name != file), None):
        raise JobError(f"{index} names a file of another folder, {outside}; put the files beside it")
    return found


def stored_tensors(folder: Path, stem: str = "model") -> dict[str, Stored]:
    """Every tensor of a folder's safetensors files, in the files' order, by name; no data is read. Raises JobError."""
    tensors: dict[str, Stored] = {}
    for path in weight_files(folder, stem):
        header, start = _header(path)
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            if name in tensors:
                here, there = (shlex.quote(str(one)) for one in (folder.absolute(), f"{folder.absolute()}-once"))
                raise JobError(
                    f"{folder} holds {name} twice, in {tensors[name].path.name} and {path.name}, and which one is read "
                    "differs between tools; make a copy with the one that the index names: "
                    f'cp -rL {here} {there} && cd {here} && python -c "{_ONCE.format(stem=stem)}" {there}'
                )
            begin, end = entry["data_offsets"]
            if entry["dtype"] in _EXPONENTS and not math.prod(entry["shape"]):
                raise JobError(
                    f"{path}: the tensor {name} is empty ({entry['shape']}), as DeepSpeed's ZeRO-3 leaves it where the "
                    "parameters are not gathered: save again with stage3_gather_16bit_weights_on_model_save, or join "
                    "the shards of a checkpoint with its zero_to_fp32.py"
                )
            tensors[name] = Stored(path, entry["dtype"], tuple(entry["shape"]), start + begin, start + end)
    return tensors


def check_weights(folder: Path, stem: str = "model") -> Weights:
    """Reads every byte once: whole files, finite numbers, and their hash. Raises JobError naming the file or tensor."""
    stored_tensors(folder, stem)  # no tensor is there twice
    digest, parameters, size = hashlib.sha256(), 0, 0
    dtypes: set[str] = set()
    for path in weight_files(folder, stem):
        header, start = _header(path)
        with path.open("rb") as file:
            digest.update(file.read(start))
            for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
                begin, end = entry["data_offsets"]
                dtypes.add(entry["dtype"])
                parameters += math.prod(entry["shape"])
                for offset in range(begin, end, _CHUNK):
                    block = file.read(min(_CHUNK, end - offset))
                    digest.update(block)
                    refuse_not_finite(block, entry["dtype"], name, path)
        size += path.stat().st_size
    return Weights(digest.hexdigest(), parameters, tuple(sorted(dtypes)), size)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The tensors' entries and the offset where the data starts, after a check that the file is whole."""
    size = path.stat().st_size
    broken = f"{path} is not a whole safetensors file; {again(path.parent)}"
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        if size < 8 or start > size:
            raise JobError(f"{broken} ({size} bytes, of at least {start})")
        try:
            header = json.loads(file.read(start - 8))
        except ValueError as error:
            raise JobError(f"{broken} (its header is not JSON)") from error
    try:
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        spans = sorted(
            (*entry["data_offsets"], entry["dtype"], math.prod(entry["shape"])) for entry in entries.values()
        )
        end = 0
        for begin, stop, dtype, numbers in spans:
            width = _EXPONENTS[dtype][0]().itemsize if dtype in _EXPONENTS else 0
            if begin != end or stop < begin or (width and stop - begin != width * numbers):
                raise JobError(f"{broken} (its header's offsets do not fit)")
            end = stop
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise JobError(f"{broken} (its header is not that of a safetensors file)") from error
    if start + end != size:
        raise JobError(f"{broken} ({size} bytes, of {start + end})")
    return entries, start


def refuse_not_finite(block: bytes | memoryview, dtype: str, name: str, path: Path) -> None:
    """Raises JobError when a part of a tensor holds a NaN or an infinity."""
    if dtype not in _EXPONENTS:
        return
    kind, exponent = _EXPONENTS[dtype]
    bits = np.frombuffer(block, kind)
    if bool(np.any((bits & kind(exponent)) == kind(exponent))):
        raise JobError(f"{path}: the tensor {name} holds NaN or Inf; the training diverged: give an earlier checkpoint")
