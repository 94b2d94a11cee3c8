"""What travels with an artifact besides what its target wrote: the clients that run it, and the model's papers.

Its README.md comes last, when it is measured: exporter/pipeline/readme.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from exporter import store
from exporter.checkpoint.card import card_files, carry_card
from exporter.targets.folder.kit import ANY, kit
from exporter.types import Target


def pack(target: Target, checkpoint: Path, folder: Path, task: str) -> list[str]:
    """Copies them into an artifact's folder, before its manifest is written; the names that they have there."""
    found = target.programs(folder, task)
    for name, source in found.items():
        shutil.copyfile(source, folder / name)
    return [*found, *carry_card(checkpoint, folder)]


def packing_identity(target: Target, checkpoint: Path) -> list[Any]:
    """What decides what is copied: an artifact that is there is reused with these only."""
    kits = [kit(ANY), *([target.kit] if target.kit else [])]
    # A README.md is made anew in every run; the other templates are the target's, whose versions count by themselves.
    sources = [
        (path.relative_to(folder).as_posix(), store.sha256_file(path))
        for folder in kits
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in (".jinja", ".pyc")
    ]
    return [sources, [(name, store.sha256_file(path)) for name, path in card_files(checkpoint).items()]]
