"""Kits: what travels with a target's artifacts, as files in targets/NAME/ beside this package.

A template is text of this project only. What comes out of a model's files is handed to it as a value, and a value is
never a template; what its place demands of it (a shell's word, a string of Triton's) is a filter's work. Programs, in a
folder for each task, are copied as they are: what they need of an artifact they read in its folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

READING = "reading.py"  # of a task: what its model is fed, and what becomes of its answer
ANY = "any"  # the kit of every target: what is common to their READMEs and programs


def kit(target: str) -> Path:
    """A target's folder of files: inside the installed package, or at the root of a checkout."""
    package = Path(__file__).resolve().parents[2]
    installed = package / "kits" / target
    return installed if installed.is_dir() else package.parent / "targets" / target


def programs(target: str, task: str) -> dict[str, Path]:
    """The files of targets/TARGET/TASK and of targets/any/TASK by their names; none where nobody has the task.

    A task that has a reading.py in targets/any/TASK is run by targets/TARGET/any, which asks it for what is its own;
    with it comes what it imports of targets/any/any. A program of the target's own for the task takes the general one's
    place.
    """
    shared, general, own = kit(ANY) / task, kit(target) / ANY, kit(target) / task
    both = kit(ANY) / task.removesuffix("-ctc")  # both kinds of speech recognition read sounds alike
    folders = [both, shared, own]
    helping: list[Path] = []
    if (shared / READING).is_file() and general.is_dir():
        folders.insert(0, general)
        reading = (shared / READING).read_text(encoding="utf-8")
        helping = [one for one in sorted((kit(ANY) / ANY).glob("*.py")) if f"from {one.stem} import" in reading]
    found = [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]
    return {path.name: path for path in (*helping, *found) if path.is_file()}


def render(target: str, file: str, filters: Mapping[str, Callable[..., str]], /, **values: Any) -> str:
    """The text of targets/TARGET/FILE.jinja with these values. A name that nobody gave a value is an error."""
    return render_in([kit(target)], file, filters, **values)


def render_in(folders: list[Path], file: str, filters: Mapping[str, Callable[..., str]], /, **values: Any) -> str:
    """The same of FILE.jinja in the first of some folders that has it; it can extend a template of any of them."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(  # no autoescape: none of these files is HTML
        loader=FileSystemLoader(folders),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= filters
    return environment.get_template(f"{file}.jinja").render(values)
