"""What a checkpoint's folder holds besides weights and configuration: tokenizer, chat template, defaults, code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from exporter.types import TOKENIZER_FILES

_TEMPLATES = ("chat_template.jinja", "chat_template.json")
_WORDS = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt", "vocab.json")
_OTHER = ("*.json", "*.py", "*.jinja", "*.model")
_OWN = "manifest.json"  # of a checkpoint that exporter prepared: the merged one gets its own


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer's words. Settings and special tokens without them are half of one."""
    return any((folder / name).is_file() for name in _WORDS)


def tokenizer_folder(base: Path, adapters: list[Path]) -> Path:
    """Whose tokenizer the merged model gets: the last adapter's that has one, or the base's."""
    return next((path for path in reversed(adapters) if has_tokenizer(path)), base)


def carry(base: Path, adapters: list[Path], folder: Path) -> None:
    """Copies what a base's folder has and the merged one lacks. The last adapter's tokenizer wins, where it has one.

    A tokenizer is taken whole from one folder: files of two would not fit each other.
    """
    for path in sorted({path for pattern in _OTHER for path in base.glob(pattern)}):
        indexes = path.name.endswith(".index.json") or path.name == _OWN
        if path.is_file() and not indexes and path.name not in TOKENIZER_FILES and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
    owner = tokenizer_folder(base, adapters)
    for name in TOKENIZER_FILES:
        if (owner / name).is_file():
            shutil.copyfile(owner / name, folder / name)
    if not _has_template(folder):
        for source in (*reversed(adapters), base):
            found = [name for name in _TEMPLATES if (source / name).is_file()]
            if found:
                shutil.copyfile(source / found[0], folder / found[0])
                break


def _has_template(folder: Path) -> bool:
    if any((folder / name).is_file() for name in _TEMPLATES):
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))
