"""Kits: what travels with a target's artifacts, as template files in targets/NAME/ beside this package.

A template is text of this project only. What comes out of a model's files is handed to it as a value, and a value is
never a template; what its place demands of it (a shell's word, a string of Triton's) is a filter's work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def kit(target: str) -> Path:
    """A target's folder of templates: inside the installed package, or at the root of a checkout."""
    package = Path(__file__).resolve().parents[2]
    installed = package / "kits" / target
    return installed if installed.is_dir() else package.parent / "targets" / target


def render(target: str, file: str, filters: Mapping[str, Callable[..., str]], /, **values: Any) -> str:
    """The text of targets/TARGET/FILE.jinja with these values. A name that nobody gave a value is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(  # no autoescape: none of these files is HTML
        loader=FileSystemLoader(kit(target)),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= filters
    return environment.get_template(f"{file}.jinja").render(values)
