"""What --prune asks for, looked at before any work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from exporter.errors import JobError
from exporter.pipeline.texts import read_text
from exporter.stages.prune.options import Pruning, check_order, parse


def read_prunings(texts: Sequence[str]) -> tuple[Pruning, ...]:
    """Each --prune, in their order. Raises JobError for one that cannot be, or cannot follow the one before it."""
    prunings = tuple(parse(text) for text in texts)
    check_order(prunings)
    for one in prunings:
        if one.file is not None:
            read_text(one.file, f"--prune {one.method}:FILE")
    return prunings


def refuse_other_ids(prunings: Iterable[Pruning], output: Path) -> None:
    """Raises JobError for what a run cannot measure: it compares the artifacts' answers to the same token ids."""
    for one in prunings:
        if one.how.kind == "tokens":
            raise JobError(
                f"--prune {one} gives tokens other ids, and a run compares answers to the same ones: do it first, "
                f"exporter compress --prune {one} -o {output.name}-smaller, and run what that writes"
            )


def calibrated_by(prunings: Iterable[Pruning]) -> bool:
    """Whether one of them looks at a text."""
    return any(one.how.calibrated for one in prunings)
