"""What --prune asks for, looked at before any work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from exporter.errors import JobError
from exporter.form import FORMS
from exporter.pipeline.texts import read_text
from exporter.stages.prune.options import Pruning, parse


def read_prunings(texts: Sequence[str]) -> tuple[Pruning, ...]:
    """Each --prune, in their order. Raises JobError for one that cannot be."""
    return tuple(_found(parse(text)) for text in texts)


def check_task(prunings: Sequence[Pruning], task: str) -> None:
    """Raises JobError for what is not pruned."""
    if prunings and task in FORMS and FORMS[task].encodes:
        raise JobError(f"--prune: models for {task} are not pruned; of --prune, --distill and --qat they take none yet")


def _found(one: Pruning) -> Pruning:
    """The same with its file's whole path, for workers. Raises JobError for a file that cannot be read."""
    if one.file is None:
        return one
    read_text(one.file, f"--prune {one.method}:FILE")
    return replace(one, amount=str(one.file.expanduser().resolve()))


def reshaped_by(prunings: Iterable[Pruning]) -> bool:
    """Whether one of them leaves numbers out."""
    return any(one.how.kind != "zeros" for one in prunings)


def calibrated_by(prunings: Iterable[Pruning]) -> bool:
    """Whether one of them looks at a text."""
    return any(one.how.calibrated for one in prunings)
