"""`exporter bench`: an output folder's artifacts measured again, on this machine, from the stored reference."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from exporter import machine, store
from exporter.errors import JobError
from exporter.job import Job
from exporter.measure.labels import LABELS, check_packages
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
) -> dict[str, Any]:
    """Measures an output folder's artifacts again, on this machine, against the stored reference; torch is not needed.

    Raises JobError where the folder holds no report.
    """
    output = output.resolve()
    read_report(output)  # what is no output folder is not locked
    with store.output_lock(output, wait, progress):
        return _bench(output, threads, progress, failed, stepped)


def _bench(output: Path, threads: int | None, progress: Progress, failed: Failed, stepped: Stepped) -> dict[str, Any]:
    report = read_report(output)
    job = Job.model_validate(report["job"] | {"output": str(output)} | ({"threads": threads} if threads else {}))
    here = machine.describe(job.threads)
    reference = store.read_manifest(output / "reference")
    if reference is None:
        raise JobError(f"{output}/reference is not there: run the job again to have a reference")
    if (output / "reference" / LABELS).is_file():
        check_packages()
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
    bench = Bench(output, checkpoint, report["evaluation"]["max_length"], job.threads, progress, failed)
    rows = []
    for old in report["results"]:
        row = Result(old["target"], old["precision"])
        row.path = old["path"]
        row.artifact |= old["artifact"] | {"engine": None}  # it is what measures, and nothing has yet
        row.build |= old["build"]
        if row.variant == known.REFERENCE:
            row = reference_row(reference)
            if not checkpoint.path.is_dir():
                row.status, row.reason = (
                    "skipped",
                    "the checkpoint is not on this machine; its stored answers are the reference",
                )
        elif old["path"] is None:
            row.status, row.reason = old["status"], old["reason"]
        bench.attempt(row, partial(_found, row, output))
        rows.append(row)
    measured = [row for row in rows if row.status == "ok" and row.variant != known.REFERENCE]
    steps = Steps(stepped, ["check", *(f"quality {row.variant}" for row in measured), "speed"])
    bench.quality(rows, steps)
    steps("speed")
    bench.speed(rows, job.repeats, job.speed_budget)
    described = {key: report[key] for key in ("name", "model", "evaluation")}
    described["evaluation"] = {"pooling": None, "data": None, **described["evaluation"]}
    described["job"] = job.model_dump(mode="json")
    return finish(job, described | {"machine": here}, rows, output)


def _found(row: Result, output: Path) -> None:
    """What is told of an artifact that is there, and whether this machine can open it."""
    if row.path is not None and row.variant != known.REFERENCE:
        manifest = store.read_manifest(output / row.path) or {}
        row.reason = "; ".join(manifest.get("notes", ())) or None
    if (reason := known.unavailable(row.variant, to_open=True)) is not None:
        row.status, row.reason = "skipped", reason
