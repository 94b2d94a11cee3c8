"""What a checkpoint's folder holds besides weights and configuration: tokenizer, chat template, defaults, code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from exporter.errors import JobError
from exporter.types import TOKENIZER_FILES

_TEMPLATES = ("chat_template.jinja", "chat_template.json")
_OTHER = ("*.json", "*.py", "*.jinja", "*.model")
_OWN = "manifest.json"  # of a checkpoint that exporter prepared: the merged one gets its own


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZER_FILES if name not in _TEMPLATES)


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


def check_tokens(folder: Path, rows: int) -> None:
    """Refuses a tokenizer whose highest id is beyond the embedding. Raises JobError."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    ids = [entry["id"] for entry in tokenizer.get("added_tokens", ())]
    vocabulary = tokenizer.get("model", {}).get("vocab", ())
    ids += list(vocabulary.values()) if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
    if ids and max(ids) >= rows:
        raise JobError(
            f"the tokenizer in {folder} has a token {max(ids)}, and the merged model {rows} embeddings; where the "
            "adapter was trained with new tokens, save it with save_embedding_layers=True; else remove that tokenizer"
        )
