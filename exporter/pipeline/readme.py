"""README.md of each artifact: how to run this very one, what it is, what was measured of it, on what terms it is.

It is written when the figures are known, and anew whenever they are measured. So it is no file of the manifest: an
artifact is reused, and is whole to `exporter verify`, with it, without it and with another.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from exporter import store
from exporter.checkpoint.card import README, read_licence
from exporter.job import Job
from exporter.measure.tokenization import TOKENIZED, TokenizedTexts, compare_tokenizer
from exporter.report import table, timing
from exporter.report.columns import columns as columns_of
from exporter.runner import Ids
from exporter.targets import known
from exporter.targets.folder.files import model_name
from exporter.targets.folder.kit import ANY, kit, render_in
from exporter.targets.folder.markdown import FILTERS
from exporter.tasks.known import TASKS
from exporter.types import Target

_WORDS = "tokenizer.json"
_TAG = re.compile(r"[^a-z0-9._-]+")


def write_readmes(report: Mapping[str, Any], output: Path) -> None:
    """Writes them for the artifacts that a report tells of. One that was skipped keeps what is known of it."""
    report = table.clean(report)
    read: dict[str, str | None] = {}  # by a tokenizer.json's hash: artifacts of a run share one
    for row in report["results"]:
        folder = None if row["path"] is None else output / row["path"]
        manifest = None if folder is None else store.read_manifest(folder)
        if folder is None or manifest is None or row["status"] == "skipped" or README in manifest["files"]:
            continue  # README.md in the manifest: a third party's target wrote its own
        words = str(manifest["files"].get(_WORDS, {}).get("sha256"))
        if words not in read:
            read[words] = alone(folder / _WORDS, output / "reference" / TOKENIZED)
        store.write_text(folder / README, readme(report, row, table.clean(manifest), folder, read[words]))


def readme(
    report: Mapping[str, Any], row: Mapping[str, Any], manifest: Mapping[str, Any], folder: Path, words: str | None
) -> str:
    """The text of an artifact's README.md. `words`: what `alone` says of its tokenizer."""
    target, precision = known.get(row["target"]), row["precision"]
    folders = [*([target.kit] if target.kit else []), kit(ANY)]
    page = README if any((one / f"{README}.jinja").is_file() for one in folders) else "artifact.md"
    source = manifest["model"]
    name = Path(source).name or source
    files = manifest["files"]
    return render_in(
        folders, page, FILTERS,
        name=name,
        variant=table.name(row),
        tag=_TAG.sub("-", f"{model_name(source)}-{precision}".lower()).strip("-._"),
        summary=target.summary,
        about=target.precisions[precision].summary,
        task=manifest["task"],
        line=line_of(target, folder.name, manifest["task"]),
        example=_example(manifest["task"]),
        files=files,
        weights=[(file, _size(files[file]["bytes"])) for file in manifest["weights"]],
        size=_size(row["artifact"]["bytes"]),
        size_ratio=_ratio(row["artifact"]["size_ratio"]),
        history=manifest["history"],
        notes=manifest.get("notes", ()),
        graph=manifest.get("graph"),
        read=lambda file: json.loads((folder / file).read_text(encoding="utf-8")),
        proven=manifest.get("proven"),
        licence=read_licence(folder),
        words=words,
        made_by=manifest["versions"]["exporter"],
        job=_job(manifest["job"], table.name(row)),
        **_measured(report, row),
    )  # fmt: skip


class _Alone:
    """tokenizer.json as the package tokenizers reads it, without transformers and its settings beside it."""

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def tokenize(self, text: str) -> Ids:
        return np.array(self._tokenizer.encode(text).ids, np.int64)


def alone(file: Path, told: Path) -> str | None:
    """How clients that use tokenizer.json alone read texts, beside the checkpoint's own tokenizer; None: not known."""
    if not (file.is_file() and told.is_file() and find_spec("tokenizers")):
        return None
    texts = TokenizedTexts.load(told)
    found = compare_tokenizer(_Alone(file), texts)["tokenizer_errors"]
    if not found.value:
        return f"it reads all {len(texts.texts)} texts that were tried as the checkpoint's own tokenizer does"
    return f"it reads {found.value:g} texts otherwise than the checkpoint's own tokenizer; {found.detail}"


def _measured(report: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """What the report says of a row, as its own forms word it."""
    columns = [(column, column.shown(report, row)) for column in columns_of(report) if column.title != "Size"]
    failed = [table.failure(gate) for gate in row["gates"] if not gate["passed"]]
    if row["status"] == "failed":
        failed.append(row["reason"])
    return {
        "failures": failed,
        "figures": [(f"{column.title} ({column.unit})", value) for column, value in columns if value is not None],
        "kept": [(gate["name"], table.gate_limit(gate)) for gate in row["gates"] if gate["passed"]],
        "reference": report["evaluation"]["reference"],
        "evaluation": report["evaluation"]["text"],
        "scored": table.scored(report),
        "engine": row["artifact"]["engine"],
        "cpu": report["machine"]["cpu"],
        "threads": report["machine"]["threads"],
        "untimed": row["speed"]["untimed"],
        "busy": _speed_notes(report, row),
        "reason": row["reason"],
    }


def _speed_notes(report: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """What must be known of this row's speed, some of which is against the reference's."""
    reference = report["evaluation"]["reference"]
    two = [one for one in report["results"] if one is row or table.name(one) == reference]
    return [note for note in timing.notes({**report, "results": two}) if not note.startswith(f"speed of {reference}:")]


def line_of(target: Target, folder: Path | str, task: str) -> str | None:
    """What a person types to run a target's artifact, where its folder has this name; None where it knows no line."""
    line = target.run.replace("{example}", _example(task))  # first: a folder may be called {example}
    return line.replace("{folder}", shlex.quote(str(folder))) or None


def _example(task: str) -> str:
    return " ".join(map(shlex.quote, TASKS[task].example))


def _job(job: Mapping[str, Any], variant: str) -> str:
    """The job file that makes this artifact: what is not a default, and no other target."""
    usual = Job.model_validate({"model": "any", "output": "any"}).identity()
    asked = {name: value for name, value in job.items() if name not in usual or value != usual[name]}
    return yaml.safe_dump(asked | {"target": variant}, allow_unicode=True, sort_keys=False).strip()


def _size(count: float | None) -> str | None:
    return None if count is None else f"{table.megabytes(count)} MB"


def _ratio(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}"
