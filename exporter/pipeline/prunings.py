"""What --prune asks for, looked at before any work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from exporter.errors import JobError
from exporter.pipeline.texts import read_text
from exporter.scheme import Scheme
from exporter.stages.prune.options import Pruning, check_order, parse


def read_prunings(texts: Sequence[str]) -> tuple[Pruning, ...]:
    """Each --prune, in their order. Raises JobError for one that cannot be, or cannot follow the one before it."""
    prunings = tuple(parse(text) for text in texts)
    check_order(prunings)
    return tuple(map(_found, prunings))


def _found(one: Pruning) -> Pruning:
    """The same with its file's whole path, for workers. Raises JobError for a file that cannot be read."""
    if one.file is None:
        return one
    read_text(one.file, f"--prune {one.method}:FILE")
    return replace(one, amount=str(one.file.expanduser().resolve()))


def check_together(prunings: Sequence[Pruning], policy: str | Path, distills: bool, trains: bool) -> None:
    """Raises JobError for what a run cannot do with a smaller model, with the reason and what can be done instead."""
    if not prunings and not distills:
        return
    asked = " ".join([*(f"--prune {one}" for one in prunings), *["--distill-…"] * distills])
    first = f"exporter compress {asked} -o smaller, and then: exporter run -m smaller"
    if isinstance(policy, Path):
        raise JobError(
            f"{asked} --policy {policy}: a policy is of one model's weights, here the smaller one's: {first}"
        )
    for one in prunings:
        if one.how.kind == "tokens":
            why = "gives tokens other ids, and a run compares answers to the same ones"
            raise JobError(f"--prune {one} {why}: do it first, {first}")
        if one.how.kind == "zeros" and trains:
            why = "training would fill the zeros again: prune shapes (width, heads, depth), or leave out --qat"
            raise JobError(f"--prune {one} and --qat: {why}")


def check_rounding(prunings: Iterable[Pruning], hows: Iterable[Mapping[str, Any] | None]) -> None:
    """Raises JobError where a way of rounding would fill the zeros; `hows` as in exporter.pipeline.plan.Wanted."""
    zeros = next((one for one in prunings if one.how.kind == "zeros"), None)
    if zeros is None:
        return
    for how in hows:
        schemes = [] if how is None else [Scheme.model_validate(one) for one in how["schemes"]]
        if any(one.palette for one in schemes):
            raise JobError(f"--prune {zeros}: a palette need not have a 0, and the zeros would go: take int4 or int8")
        if how is not None and how["rounding"] == "gptq" and any(one.bits == 4 for one in schemes):
            raise JobError(f"--prune {zeros}: GPTQ moves weights that are 0: give --rounding nearest, or awq")


def calibrated_by(prunings: Iterable[Pruning]) -> bool:
    """Whether one of them looks at a text."""
    return any(one.how.calibrated for one in prunings)
