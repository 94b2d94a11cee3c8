"""The float reference: torch float32's answers on the evaluation's tokens, stored for everything that is compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter import machine
from exporter.device import CPU, named
from exporter.form import FORMS
from exporter.measure.embedding import modules_identity
from exporter.pipeline.asking import measure_reference
from exporter.pipeline.covering import own_forms
from exporter.pipeline.inputs import PICTURES, SOUNDS, reads
from exporter.pipeline.lengths import lengths_of
from exporter.pipeline.pictures import measure_pictures
from exporter.pipeline.plan import Plan
from exporter.pipeline.sounds import measure_sounds
from exporter.pipeline.speech import measure_speech
from exporter.process import Progress, Worker
from exporter.report.result import Figure, Result
from exporter.store import content_key
from exporter.targets import known
from exporter.tasks import known as tasks
from exporter.tasks.text_classification import OF_ITSELF
from exporter.types import FEATURES, GENERATION, Checkpoint

if TYPE_CHECKING:
    pass

_ROUNDING = 1e-5  # of the largest answer: float32's, of sums in another order
_CLASSIFIED = 4  # texts beyond each boundary, of what answers once a text
_PROBE_LENGTHS = (17, 5, 11)  # none that a graph was traced at, and different: a batch of them is padded


def referred(plan: Plan, checkpoint: Checkpoint, output: Path, worker: Worker, progress: Progress) -> dict[str, Any]:
    """The manifest of the reference's answers, stored beside the artifacts."""
    progress("reference", 0, 0)
    how: dict[str, Any] = {"eval_tokens": plan.job.eval_tokens, "window": plan.window, "stride": plan.stride}
    how |= {"perplexity": plan.job.perplexity, "generation": plan.job.generation}
    how |= lengths_of(plan.job, plan.source)
    made_of = [checkpoint.sha256, checkpoint.task, plan.text, plan.job.sample, how, machine.versions()]
    key = content_key(["reference with lengths, samples, answers to sources, on whole texts, answered alone", *made_of])
    data = None if plan.data is None else plan.data.to_json()
    modules = plan.source.checkpoint.path if plan.embedding is not None else None  # a merge changes none of them
    if data is not None or modules is not None:
        key = content_key([key, data, modules and modules_identity(modules)])
    told = {"key": key, "threads": plan.job.threads, "text": plan.text, **how}
    gpu, _ = known.placed(known.REFERENCE, plan.job.device, checkpoint.task)
    if gpu is not None:
        key, told["gpu"] = content_key([key, named(gpu)]), gpu
        told["key"] = key
    if reads(checkpoint.task) is PICTURES:
        if plan.labels:
            told |= {"key": content_key([key, *plan.labels]), "labels": plan.labels}
        seen = {name: told[name] for name in ("key", "threads", "text", "gpu", "labels") if name in told}
        found: dict[str, Any] = worker(measure_pictures, checkpoint=checkpoint, folder=output / "reference", **seen)
        return found
    if reads(checkpoint.task) is SOUNDS:
        given = {name: told[name] for name in ("key", "threads", "text", "gpu") if name in told} | {"data": data}
        measure = measure_speech if FORMS[checkpoint.task].encodes else measure_sounds
        heard: dict[str, Any] = worker(measure, checkpoint=checkpoint, folder=output / "reference", **given)
        return heard
    told |= {"data": data, "modules": modules, "samples": plan.job.sample, "max_length": plan.source.max_length}
    manifest: dict[str, Any] = worker(measure_reference, checkpoint=checkpoint, folder=output / "reference", **told)
    return manifest


def _of_itself(reference: Mapping[str, Any]) -> Mapping[str, float]:
    """What a model has of itself: by its task, or a classifier's problem type; an older manifest has neither."""
    task = reference.get("task") or (GENERATION if reference["ppl"] is not None else FEATURES)
    return OF_ITSELF.get(reference.get("problem_type", "")) or tasks.TASKS[task].of_itself


def reference_row(reference: dict[str, Any]) -> Result:
    """The reference's own row: compared with itself, and as large as its parameters are in float32."""
    row = Result(known.REFERENCE.target, known.REFERENCE.precision)
    row.artifact |= {"bytes": 4 * reference["parameters"], "size_ratio": 1.0, "engine": reference["engine"]}
    row.artifact["device"] = reference.get("device", CPU)  # an older exporter's was always that
    row.reason = "the reference: its size is 4 bytes for each parameter; it is not written to disk again"
    row.quality["logit_error"] = Figure(0.0)
    if reference["ppl"] is not None:
        row.quality |= {"ppl": Figure(reference["ppl"], reference["ppl_se"]), "ppl_ratio": Figure(1.0, 0.0)}
    row.quality |= {name: Figure(value) for name, value in _of_itself(reference).items()}
    row.quality |= {name: Figure(**value) for name, value in reference.get("labelled", {}).items()}
    row.quality |= own_forms(reference)
    row.generation |= reference.get("generation") or {}
    row.samples = reference.get("samples")
    if (doubted := (reference.get("data") or {}).get("note")) is not None:
        row.reason += f"; {doubted}"
    return row
