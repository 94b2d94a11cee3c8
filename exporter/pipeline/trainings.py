"""What --qat asks for, looked at before any work; and how weights are quantized, as a worker is told of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from exporter.errors import JobError
from exporter.job import Job
from exporter.pipeline.source import Source
from exporter.pipeline.texts import calibration_text
from exporter.quantization.policy import Policy
from exporter.scheme import Scheme
from exporter.stages.train.options import HEAD, QatOptions
from exporter.types import GENERATION


@dataclass(frozen=True)
class Training:
    """Quantization-aware training: `how` the schemes trained for are found, and its text (name, text, skip)."""

    options: QatOptions
    how: dict[str, Any]
    text: dict[str, Any] = field(repr=False)


def how_of(job: Job, schemes: Iterable[Scheme], policy: Policy | None) -> dict[str, Any]:
    return {
        "schemes": [scheme.model_dump(mode="json") for scheme in schemes],
        "policy": None if policy is None else policy.model_dump(mode="json"),
        "ranges": job.ranges,
    }


def plan_training(
    job: Job, options: QatOptions | None, source: Source, evaluated: str, policy: Policy | None
) -> Training | None:
    """Quantization-aware training, where the job asks for it. Raises JobError."""
    if options is None:
        return None
    if source.checkpoint.task != GENERATION:
        raise JobError(f"--qat trains models for {GENERATION}, and this one is for {source.checkpoint.task}")
    name, text, skip = calibration_text(options.data or job.calib_text, source.recipe, evaluated, job.eval_tokens)
    how = how_of(job, (options.layer_scheme(), HEAD), policy) | {"mixed": False, "smooth": False, "rounding": "nearest"}
    return Training(options, how, {"name": name, "text": text, "skip": skip})
