"""An artifact opened by ai-edge-litert."""

from __future__ import annotations

import json
from pathlib import Path

from exporter.form import FORMS
from exporter.targets.litert.held import FILE
from exporter.targets.litert.runner import LitertDecoder, LitertEncoder, LitertPictures
from exporter.types import GENERATION

Opened = LitertEncoder | LitertDecoder | LitertPictures


def open_folder(folder: Path, threads: int) -> Opened:
    """An artifact's folder; its task is in the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return open_file(folder / FILE, manifest["task"], threads)


def open_file(file: Path, task: str, threads: int) -> Opened:
    """A file of a task's model. Raises BuildError where LiteRT does not take it."""
    if FORMS[task].inputs == "pixels":
        return LitertPictures(file, threads)
    return (LitertDecoder if task == GENERATION else LitertEncoder)(file, threads)
