"""A checkpoint's model card: its README.md, the licence that its front matter names, the files that hold the terms.

In an artifact's folder the card is MODEL_CARD.md, because README.md is the artifact's own there.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from filecmp import cmp
from pathlib import Path
from typing import Any

import yaml

README, CARD = "README.md", "MODEL_CARD.md"
OURS = "exporter"  # the key of the front matter that an artifact's README.md has, and no other page
_TERMS = re.compile(r"(licen[cs]e|notice|copying|copyright|use_policy|usage_policy)\b.*", re.IGNORECASE)
_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Licence:
    """What a folder says of its model's licence. `name`: of its card, None: it names none; `files`: the terms' texts.

    `unread`: the card has front matter that is no YAML, so that what it says is not known.
    """

    name: str | None
    link: str | None
    files: tuple[str, ...]
    unread: bool = False


def card_files(checkpoint: Path) -> dict[str, Path]:
    """What travels of a checkpoint's papers with an artifact, by the names there: the card, and the terms."""
    found = {path.name: path for path in sorted(checkpoint.iterdir()) if path.is_file() and _TERMS.fullmatch(path.name)}
    readme = checkpoint / README
    # Where an artifact is the checkpoint, its README.md is of that artifact, and the model's card lies beside it.
    ours = readme.is_file() and OURS in (_front_matter(readme) or {})
    card = checkpoint / CARD if ours else readme
    return found | ({CARD: card} if card.is_file() else {})


def carry_card(checkpoint: Path, folder: Path) -> list[str]:
    """Brings a checkpoint's papers into an artifact's folder; the names that they have there.

    Where a target copied the checkpoint's README.md with all else, its name is the artifact's own now.
    """
    files, copied = card_files(checkpoint), folder / README
    if copied.is_file() and (checkpoint / README).is_file() and cmp(copied, checkpoint / README, shallow=False):
        copied.unlink()
    for name, source in files.items():
        shutil.copyfile(source, folder / name)
    return list(files)


def read_licence(folder: Path) -> Licence:
    """What an artifact's folder says of its model's licence."""
    files = tuple(sorted(path.name for path in folder.iterdir() if path.is_file() and _TERMS.fullmatch(path.name)))
    card = folder / CARD
    front = _front_matter(card) if card.is_file() else {}
    if front is None:
        return Licence(None, None, files, unread=True)
    return Licence(", ".join(_names(front)) or None, _text(front.get("license_link")), files)


def _names(front: dict[str, Any]) -> Iterator[str]:
    """`license` as the hub writes it: an identifier or several; "other" stands for the `license_name` beside it."""
    said = front.get("license")
    for one in said if isinstance(said, list) else [said]:
        name = _text(front.get("license_name")) if one == "other" else None
        if (found := name or _text(one)) is not None:
            yield found


def _text(value: Any) -> str | None:
    return value.strip() or None if isinstance(value, str) else None


def _front_matter(page: Path) -> dict[str, Any] | None:
    """The front matter of a page; {} where it has none, None where it cannot be read."""
    match = _FRONT.match(page.read_text(encoding="utf-8", errors="replace"))
    if match is None:
        return {}
    try:
        front = yaml.safe_load(match[1])
    except yaml.YAMLError:
        return None
    return front if isinstance(front, dict) else {}
