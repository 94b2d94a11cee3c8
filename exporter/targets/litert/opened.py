"""An artifact opened by ai-edge-litert."""

from __future__ import annotations

import json
from pathlib import Path

from exporter.targets.litert.held import FILE
from exporter.targets.litert.runner import LitertDecoder, LitertEncoder
from exporter.types import GENERATION


def open_folder(folder: Path, threads: int) -> LitertEncoder | LitertDecoder:
    """An artifact's folder; its task is in the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return open_file(folder / FILE, manifest["task"], threads)


def open_file(file: Path, task: str, threads: int) -> LitertEncoder | LitertDecoder:
    """A file of a task's model. Raises BuildError where LiteRT does not take it."""
    return (LitertDecoder if task == GENERATION else LitertEncoder)(file, threads)
