"""Mistakes that the user can mend.

    ExporterError           the problem, the choices there are, the command that mends it
    ├── JobError            the command line or the job is wrong                  (exit status 2)
    └── BuildError          an artifact that was asked for could not be built     (exit status 4)
        └── MissingPackage  a target's package is not installed

Anything else that is raised is a bug of exporter: it keeps its traceback and exits with 1. A gate that fails is a
result, not an error: the run ends normally, with exit status 3.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from exporter.distribution import install_command

EXIT_OK, EXIT_BUG, EXIT_JOB, EXIT_GATE, EXIT_BUILD, EXIT_INTERRUPTED = 0, 1, 2, 3, 4, 130


class ExporterError(Exception):
    """One clear line for a person: what is wrong, what there is instead, what to run."""

    exit_status = EXIT_JOB


class JobError(ExporterError):
    """The command line, the job file, the model or the texts cannot be worked with as they are."""


class BuildError(ExporterError):
    """An artifact that was asked for could not be built. `build`: what is known of it, for its row in the report."""

    exit_status = EXIT_BUILD
    build: dict[str, Any] | None = None


class MissingPackage(BuildError):
    """A package that this target needs is not installed. `extra`: exporter's extra that brings it, "" for none.

    `instead`: what else mends it, to follow the command.
    """

    def __init__(self, what: str, packages: Iterable[str], extra: str, instead: str = "") -> None:
        names = list(packages)
        remedy = install_command(extra, names) if extra else f"pip install {' '.join(names)}"
        super().__init__(f"{what} needs {', '.join(names)}; install with: {remedy}{instead}")


def one_line(error: Exception) -> str:
    """What a library's error says, for a line of ours: 300 characters at most, and its type where it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def not_utf8(path: Path, error: UnicodeDecodeError, converted: str) -> JobError:
    """For a text in another encoding: `converted` is the file that the command which mends it writes."""
    how = f"iconv -f latin1 -t utf-8 {path} > {converted}"
    return JobError(f"{path} is not UTF-8 (byte {error.start}); convert it: {how}")


def unknown(kind: str, name: str, choices: Iterable[str]) -> str:
    """The line for a misspelt name: the nearest choices, or all of them when none is near."""
    known = sorted(choices)
    near = get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return f"unknown {kind} {name!r}; did you mean {' or '.join(near)}?"
    return f"unknown {kind} {name!r}; there are: {', '.join(known)}"
