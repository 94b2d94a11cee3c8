"""The pages that a person reads, README.md and docs/, in the order in which they are read, and the commands on them.

What stands behind a $ in a ```console block is run; a command in another block is only parsed, by the program itself.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml
from conftest import ROOT

SITE: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
_COMMAND = re.compile(r"""(?<![\w$./"-])exporter ((?:'[^']*'|"[^"]*"|[^'"\n;|&>)#])+)""")


class Block(NamedTuple):
    page: str
    language: str
    text: str


class Command(NamedTuple):
    """The words of a command, its program first."""

    page: str
    words: tuple[str, ...]

    @property
    def exporter(self) -> tuple[str, ...] | None:
        """What exporter is told; None of another program's."""
        return self.words[1:] if self.words[0] == "exporter" else None


def _named(nav: Any) -> Iterator[str]:
    """The files of mkdocs.yml's nav, whatever they are called there."""
    if isinstance(nav, str):
        yield f"docs/{nav}"
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from _named(part)


PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", *_named(SITE["nav"]))}
BLOCKS = [Block(page, *found) for page, text in PAGES.items() for found in _FENCE.findall(text)]


def blocks(language: str, page: str = "") -> list[str]:
    """The texts of a language's blocks, on one page or on all of them."""
    return [block.text for block in BLOCKS if block.language == language and page in ("", block.page)]


def run_as_they_stand() -> list[Command]:
    """Each line behind a $, comments apart."""
    consoles = (block for block in BLOCKS if block.language == "console")
    return [
        Command(block.page, tuple(shlex.split(line, comments=True)))
        for block in consoles
        for line in re.findall(r"^\$ (.+)$", block.text, re.M)
    ]


def only_read() -> list[Command]:
    """Each command of exporter in another block: a script's, a pipeline's."""
    others = (block for block in BLOCKS if block.language in ("sh", "yaml"))
    return [
        Command(block.page, ("exporter", *shlex.split(words)))
        for block in others
        for words in _COMMAND.findall(block.text)
    ]
