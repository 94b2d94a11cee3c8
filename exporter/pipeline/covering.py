"""What the tokens that are scored cover of the evaluation's text (--perplexity): stored beside the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from exporter.errors import JobError
from exporter.job import Job
from exporter.measure.arithmetic import Doubles
from exporter.measure.perplexity import Forms, cover
from exporter.measure.quality import Passages
from exporter.report.forms import SEQUENCE, UNITS
from exporter.report.result import Figure
from exporter.tasks.text_generation import windows
from exporter.types import GENERATION


def check_forms(job: Job, task: str) -> None:
    """Raises JobError for a form of the perplexity where there is none."""
    if job.perplexity and task != GENERATION:
        raise JobError(
            f"--perplexity {job.perplexity[0]} is of models that continue a text, and this one is for {task}: it has "
            "no perplexity"
        )


def forms_of(tokenizer: Any, text: str, passages: Passages, asked: Sequence[str]) -> Forms | None:
    """What of a text the scored tokens of its one passage cover; None where no form but the tokens' was asked for.

    Raises JobError for a tokenizer that does not tell where in the text its tokens are.
    """
    units = [unit for unit in UNITS if unit in asked]
    if not units and SEQUENCE not in asked:
        return None
    spans = list(windows(len(passages.ids), passages.window, passages.stride))
    scored = np.concatenate([np.arange(first, end) for _, end, first in spans])
    sequences = np.repeat(np.arange(len(spans)), [end - first for _, end, first in spans])
    counts: dict[str, Doubles] = {}
    if units:
        if not tokenizer.is_fast:
            raise JobError(
                f"--perplexity {units[0]} needs to know which part of the text each token is, and "
                f"{type(tokenizer).__name__} does not tell: give the model a tokenizer.json, or leave the flag out"
            )
        told = tokenizer(text, return_offsets_mapping=True)
        covered = cover(text, told["offset_mapping"], units)  # of all of it: a cut may go through a character
        counts = {unit: each[scored] for unit, each in covered.items()}
    return Forms(counts, sequences if SEQUENCE in asked else None)


def own_forms(reference: Mapping[str, Any]) -> dict[str, Figure]:
    """The reference's own figures, of its manifest; none where none was asked for, or an older exporter wrote it."""
    figures: Mapping[str, Any] = (reference.get("perplexity") or {}).get("figures", {})
    return {name: Figure(**value) for name, value in figures.items()}


def facts_of(forms: Forms | None, nll: Doubles) -> dict[str, Any] | None:
    """The reference's own figures, and how much of the text they are of; None where none was asked for."""
    if forms is None:
        return None
    return {"covered": forms.about(), "figures": {name: asdict(it) for name, it in forms.figures(nll).items()}}
