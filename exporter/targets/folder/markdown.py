"""Text of a model's files in Markdown: filters for a kit's README.md.jinja, each for one kind of place.

What a value is, such as a name with a backquote or a newline, never decides how the page around it reads.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any

_PLAIN = re.compile(r"[\w.:/+@=,-](?:[\w.:/+@=, -]*[\w.:/+@=,-])?")  # reads well between backquotes, and ends there
_MARKUP = re.compile(r"[&<>|@]|([\\`*_\[\]~#$!])")
_BEGINS = re.compile(r"^(?=[-+=]([-+=\s]|$)|\d+[.)](\s|$))")  # a list, a rule, a heading's line, numbered items


def text(value: Any) -> str:
    """On one line, and as it is: nothing in it is markup, ends a table's cell or mentions a person."""
    line = _MARKUP.sub(_escaped, " ".join(str(value).split()))
    return _BEGINS.sub("&#8203;", line)


def _escaped(match: re.Match[str]) -> str:
    if match[1]:
        return f"\\{match[1]}"
    return "@&#8203;" if match[0] == "@" else f"&#{ord(match[0])};"


def code(value: Any) -> str:
    """In the type of code; between backquotes where they suffice, for they read well in the source too."""
    line = " ".join(str(value).split())
    return f"`{line}`" if _PLAIN.fullmatch(line) else f"<code>{text(line)}</code>"


def fenced(value: str, language: str = "") -> str:
    """A block of code, behind fences that are longer than any in it."""
    longest = max((len(run) for run in re.findall("`+", value)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{value.strip(chr(10))}\n{fence}\n"


def word(value: Any) -> str:
    """A word of a shell's line, which lies in a block of code."""
    return shlex.quote(str(value))


def front(value: Any) -> str:
    """A value of YAML's front matter, on its own line: JSON, which YAML reads."""
    return json.dumps(value, ensure_ascii=False)


FILTERS: Mapping[str, Callable[..., str]] = {
    "text": text, "code": code, "fenced": fenced, "word": word, "front": front,
}  # fmt: skip
