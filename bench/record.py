"""What a result holds, bench/results/NAME.json: raw figures, and what one must know to measure them again.

schema_version  1
name            the program, bench/NAME.py
command         what was typed, files by their names alone
date, commit    of the start; "-dirty" behind a commit whose code had been changed
machine         processor, cores, threads, memory, load before it, GPU, system, Python
versions        of the packages that decide what an artifact is
unknown         why a field above is null: {field: reason}
taken_over      null; or, of figures that were read off a page instead of measured, from where and how exact
reports         what exporter's runs reported: rows as they are in report.json, each run under a label of its own
figures         what the program measured beside them; names end in their unit as in report.json (_s, _bytes, _per_s)
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from exporter import machine, store

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
SCHEMA = 1
# What is not code: the results themselves, and the pages that are written from them.
_NO_CODE = (":!bench/results", ":!*.md")


def commit(root: Path = ROOT) -> str | None:
    """The checkout's commit, with a mark where its code was changed since; None where there is no git."""
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", ".", *_NO_CODE)
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}-dirty" if changed else head


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def command_line(name: str, arguments: Sequence[str]) -> str:
    """The command as it was typed, without the folders of this machine."""
    return shlex.join(["python", "-m", f"bench.{name}", *(re.sub(r"[^=]*/(?=.)", "", word) for word in arguments)])


def begin(name: str, threads: int) -> dict[str, Any]:
    """The fields about a result: call it before anything is measured, for the load must be that of others."""
    about = machine.describe(threads)
    versions = about.pop("versions")
    at = commit()
    return {
        "schema_version": SCHEMA,
        "name": name,
        "command": command_line(name, sys.argv[1:]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": at,
        "machine": about,
        "versions": versions,
        "unknown": {} if at else {"commit": "measured outside of a git checkout"},
        "taken_over": None,
    }


def report(whole: Mapping[str, Any], label: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """What a result keeps of a run's report; `job` are the fields of the job that the program gave.

    Two runs of one model need two labels: a row is known by model, label and variant. Of the samples their numbers
    stay: the text itself is not the project's to hand on.
    """
    here = whole["machine"]
    return {
        "label": label,
        "name": whole["name"],
        "model": whole["model"],
        "job": dict(job),
        "evaluation": whole["evaluation"],
        "machine": {name: here[name] for name in ("cpu", "threads", "load_average")},
        "results": [row | {"samples": _counted(row.get("samples"))} for row in whole["results"]],
    }


def _counted(samples: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if samples is None else {name: value for name, value in samples.items() if name != "shown"}


def write(
    about: Mapping[str, Any], reports: Sequence[Mapping[str, Any]], figures: Mapping[str, Any], folder: Path = RESULTS
) -> Path:
    """Writes the result whole or not at all, and returns its file."""
    known = [(one["name"], one["label"]) for one in reports]
    assert len(set(known)) == len(known), known
    result = without_folders({**about, "reports": list(reports), "figures": dict(figures)})
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{about['name']}.json"
    store.write_text(file, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return file


def without_folders(value: Any) -> Any:
    """The same value without the folders of this machine: a path keeps what follows the folder, a Path its name."""
    if isinstance(value, Path):
        return value.name
    if isinstance(value, str):
        for folder in (ROOT, store.cache_folder(), Path(tempfile.gettempdir()), Path(sys.prefix), Path.home()):
            if folder != folder.parent:  # a container's home may be /
                value = value.replace(f"{folder}/", "")
        return value
    if isinstance(value, Mapping):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    return value
