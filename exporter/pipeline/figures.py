"""Figures that an earlier run measured of the same artifacts: OUT/figures/VARIANT.json, one place for all of them.

One is used again only where everything that it depends on is what it was: the files of the artifact and of the
reference, the evaluation, all that the operation was told, the machine, the versions, exporter's own code. Gates are no
part of it: they are judged anew. A checksum tells a file that was cut or changed.
"""

from __future__ import annotations

import functools
import json
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import exporter
from exporter import machine, store
from exporter.store import content_key, read_manifest
from exporter.targets import known
from exporter.types import Checkpoint, Variant

FOLDER = "figures"
Measured = Mapping[str, Any]  # what a worker's operation returns of a row: JSON
# What an operation is told and where: its files count by their contents.
_PLACES = ("checkpoint", "folder", "reference", "variant")
# Variables that engines read: kernels, threads, devices, precision.
_ENGINES = (
    "ATEN_", "CUBLAS_", "CUDA_", "DNNL_", "GGML_", "KMP_", "LLAMA_", "MKL_", "NVIDIA_", "OMP_", "ONEDNN_", "ORT_",
    "TORCH_",
)  # fmt: skip
_WORDS = {
    "artifact": "the artifact",
    "checkpoint": "the checkpoint",
    "reference": "the reference's answers",
    "evaluation": "the text, tokens or windows that are evaluated",
    "environment": "engines' environment variables",
    "exporter": "exporter's own code",
}


class Figures:
    """The stored figures of an output folder. `use`: whether they may stand for a measurement; they are kept anyway.

    `evaluation`: what the reference was made of besides the model, for it is told apart where something differs.
    """

    def __init__(self, output: Path, evaluation: Mapping[str, Any], use: bool) -> None:
        self._output, self._evaluation, self._use = output, evaluation, use

    def depends_on(self, kind: str, variant: Variant, told: Mapping[str, Any]) -> dict[str, Any] | None:
        """All that a measurement's figures depend on, by name; None where something of it cannot be known.

        `kind`: quality or speed. `told`: the operation's arguments, whose `folder` is the artifact's: its files were
        proven against its manifest in this run.
        """
        checkpoint: Checkpoint = told["checkpoint"]
        reference = read_manifest(self._output / "reference")
        # The reference itself is not written again: it is the checkpoint.
        artifact = {"files": None} if variant == known.REFERENCE else read_manifest(told["folder"])
        if reference is None or artifact is None:
            return None
        asked = {name: value for name, value in told.items() if name not in _PLACES}
        parts = {
            **asked,
            "artifact": content_key([artifact["files"], told["variant"]]),
            "checkpoint": content_key([checkpoint.sha256, checkpoint.task, checkpoint.trust_remote_code]),
            "reference": content_key(reference["files"]),
            "evaluation": content_key(self._evaluation),
            "versions": machine.versions(),
            "machine": _machine(kind),
            "environment": {name: value for name, value in os.environ.items() if name.startswith(_ENGINES)},
            "exporter": _own_code(),
        }
        plain: dict[str, Any] = json.loads(json.dumps(parts, default=str))
        return plain

    def find(self, kind: str, variant: Variant, parts: Mapping[str, Any] | None) -> tuple[Measured | None, str | None]:
        """The stored figures that depend on the same, or None; and, where there are others, why they are not used."""
        if not self._use or parts is None:
            return None, None
        entries = self._read(variant)
        if entries is None:
            return None, "what was stored of it is damaged"
        if (entry := entries.get(kind)) is None:
            return None, None
        if entry["sha256"] != _checksum(entry):
            return None, "what was stored of it is damaged"
        before = entry["parts"]
        unlike = [name for name in {**before, **parts} if before.get(name) != parts.get(name)]
        if unlike:
            return None, f"since then changed: {', '.join(_WORDS.get(name, name) for name in unlike)}"
        measured: Measured = entry["measured"]
        return measured, None

    def keep(self, kind: str, variant: Variant, parts: Mapping[str, Any] | None, measured: Measured) -> None:
        """Stores figures in the place of earlier ones of this kind; not those that are no numbers."""
        if parts is None or not _finite(measured):
            return
        entries = self._read(variant) or {}
        entry = {"parts": parts, "measured": json.loads(json.dumps(measured))}
        entries[kind] = entry | {"sha256": _checksum(entry)}
        (self._output / FOLDER).mkdir(exist_ok=True)
        store.write_text(self._file(variant), json.dumps(entries, indent=2) + "\n")

    def _file(self, variant: Variant) -> Path:
        return self._output / FOLDER / f"{variant.folder}.json"

    def _read(self, variant: Variant) -> dict[str, Any] | None:
        """Entries by their kind; none where there is no file, None where it cannot be read as such."""
        try:
            entries = json.loads(self._file(variant).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError):
            return None
        whole = isinstance(entries, dict) and all(
            isinstance(entry, dict) and {"parts", "measured", "sha256"} == set(entry) for entry in entries.values()
        )
        return entries if whole else None


def _checksum(entry: Mapping[str, Any]) -> str:
    return content_key([entry["parts"], entry["measured"]])


def _finite(value: Any) -> bool:
    if isinstance(value, Mapping | list | tuple):
        return all(map(_finite, value.values() if isinstance(value, Mapping) else value))
    return not isinstance(value, float) or math.isfinite(value)


def _machine(kind: str) -> dict[str, Any]:
    """What figures of a kind depend on: answers on the processor and its features, speed on this very machine."""
    import psutil

    found: dict[str, Any] = {
        "cpu": machine.cpu_name(),
        "features": machine.cpu_features(),
        "gpus": machine.gpus(),
        "os": platform.platform(),
        "python": platform.python_version(),
    }
    if kind == "speed":
        memory = psutil.virtual_memory().total
        found |= {"host": platform.node(), "cores": machine.usable_cores(), "memory_bytes": memory}
    return found


@functools.cache
def _own_code() -> str:
    """A checkout's version says little of what it measures."""
    root = Path(exporter.__file__).parent
    return content_key({str(path.relative_to(root)): store.sha256_file(path) for path in sorted(root.rglob("*.py"))})
