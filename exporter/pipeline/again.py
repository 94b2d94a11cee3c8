"""`exporter bench`: an output folder's artifacts measured again, on this machine, from the stored reference."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from exporter import cache, machine, store
from exporter.checkpoint.weights import weight_files
from exporter.device import gpu_number, was_asked
from exporter.errors import BuildError, JobError
from exporter.job import Job, load_job
from exporter.measure.labels import LABELS, Labels, check_packages
from exporter.pipeline.judging import finish
from exporter.pipeline.measuring import Bench, Failed, nobody
from exporter.pipeline.reference import reference_row
from exporter.process import Progress, Stepped, Steps, silent, unheard
from exporter.report.files import read_report
from exporter.report.result import Result
from exporter.targets import known
from exporter.types import Checkpoint


def bench_again(
    output: Path,
    threads: int | None,
    progress: Progress = silent,
    failed: Failed = nobody,
    wait: bool = False,
    stepped: Stepped = unheard,
    device: str | None = None,
) -> dict[str, Any]:
    """Measures an output folder's artifacts again, on this machine, against the stored reference; torch is not needed.

    Raises JobError where the folder holds no report.
    """
    output = output.resolve()
    read_report(output)  # what is no output folder is not locked
    with store.output_lock(output, wait, progress), cache.using():
        asked = {"output": str(output), "threads": threads, "device": device}
        told = {name: value for name, value in asked.items() if value is not None}
        return _bench(output, told, progress, failed, stepped)


def _bench(output: Path, told: dict[str, Any], progress: Progress, failed: Failed, stepped: Stepped) -> dict[str, Any]:
    report = read_report(output)
    job = load_job(Job, report["job"] | told)
    gpu_number(job.device)  # one that is not there is refused before work
    here = machine.describe(job.threads)
    reference = store.read_manifest(output / "reference")
    if reference is None:
        raise JobError(f"{output}/reference is not there: run the job again to have a reference")
    if (labels := output / "reference" / LABELS).is_file():
        check_packages(kind=Labels.load(labels).kind)
    model = report["model"]
    checkpoint = Checkpoint(
        Path(reference["checkpoint"]),
        model["task"],
        model["source"],
        model["sha256"],
        model["parameters"],
        tuple(model["history"]),
        job.trust_remote_code,
    )
    if checkpoint.path.parent == cache.MERGED.place().absolute():
        store.used(checkpoint.path)
    bench = Bench(
        output, checkpoint, report["evaluation"]["max_length"], job.threads, progress, failed, device=job.device
    )
    rows = []
    for old in report["results"]:
        row = Result(old["target"], old["precision"])
        row.path = old["path"]
        row.artifact |= old["artifact"] | {"engine": None}  # it is what measures, and nothing has yet
        row.build |= old["build"]
        if row.variant == known.REFERENCE:
            row = reference_row(reference)
            if (why := _gone(checkpoint.path)) is not None:
                row.status, row.reason = "skipped", f"{why}; its stored answers are the reference"
        elif old["path"] is None:
            row.status, row.reason = old["status"], old["reason"]
        bench.attempt(row, partial(_found, row, output, job.device, checkpoint.task))
        rows.append(row)
    measured = [row for row in rows if row.status == "ok" and row.variant != known.REFERENCE]
    shipped = [row for row in rows if row.path is not None and row.variant != known.REFERENCE]
    if shipped and all(row.status == "skipped" for row in shipped):
        why = "; ".join(dict.fromkeys(f"{row.variant}: {row.reason}" for row in shipped))
        raise BuildError(f"no artifact of {output} can be measured here: {why}")
    steps = Steps(stepped, ["check", *(f"quality {row.variant}" for row in measured), "speed"])
    bench.quality(rows, steps)
    steps("speed")
    bench.speed(rows, job.repeats, job.speed_budget, job.generation)
    described = {key: report[key] for key in ("name", "model", "evaluation")}
    described["evaluation"] = {"perplexity": None, "pooling": None, "data": None, **described["evaluation"]}
    described["job"] = job.model_dump(mode="json")
    return finish(job, described | {"machine": here}, rows, output)


def _gone(checkpoint: Path) -> str | None:
    """Why the checkpoint that a report is of cannot be opened again, or None."""
    if not checkpoint.is_dir():
        return "the checkpoint is not on this machine"
    try:
        weight_files(checkpoint)
    except JobError as error:
        return f"the checkpoint is not what it was: {error}"
    return None


def _found(row: Result, output: Path, device: str, task: str) -> None:
    """What is told of an artifact that is there, and whether this machine can open it, on the device that was asked.

    Raises BuildError where an engine could run there, and what is installed cannot.
    """
    if row.path is not None and row.variant != known.REFERENCE:
        manifest = store.read_manifest(output / row.path) or {}
        row.reason = "; ".join(manifest.get("notes", ())) or None
    if (reason := known.unavailable(row.variant, to_open=True)) is not None:
        row.status, row.reason = "skipped", reason
    elif was_asked(device) and (reason := known.placed(row.variant, device, task)[1]) is not None:
        if known.get(row.target).open_cuda is not None and row.variant != known.REFERENCE:
            raise BuildError(f"{row.variant} is not measured on {device}: {reason}")
        row.status, row.reason = "skipped", reason
