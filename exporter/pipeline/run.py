"""run(job): the whole program. Check, merge, reference, export, measure, gates, report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from exporter import __version__, machine, store
from exporter.errors import EXIT_BUILD, EXIT_GATE, EXIT_OK, ExporterError, JobError
from exporter.job import Job
from exporter.measure.gates import judge
from exporter.pipeline.calibrating import calibrated
from exporter.pipeline.exporting import Exports
from exporter.pipeline.measuring import Bench, Failed
from exporter.pipeline.merging import check_perplexity, merge_stage
from exporter.pipeline.plan import Plan, make_plan
from exporter.pipeline.training import qat_stage
from exporter.process import HUGE_PAGES, Progress, Worker, silent
from exporter.report.render import render
from exporter.targets import known
from exporter.types import Checkpoint, Gates, Result, Variant


def nobody(variant: Variant, error: ExporterError) -> None:
    """Told of failures, and says nothing: they are in the report."""


def run(job: Job, progress: Progress = silent, failed: Failed = nobody) -> dict[str, Any]:
    """Does a job and returns its report, which is in the output folder too. Raises ExporterError before any work."""
    output = job.output.expanduser().resolve()
    here = machine.describe(job.threads)  # first of all: the load average must be that of others
    # One process for all that needs torch before the exports: importing it takes as long as a small export.
    with Worker(output / "logs" / "prepare.log", job.threads, progress, HUGE_PAGES) as worker:
        plan = make_plan(job, worker)
        _take_over(output, plan)
        checkpoint, merged = merge_stage(job, plan.source, plan.text, worker, progress)
        reference = _reference(plan, checkpoint, output, worker, progress)
        if merged is not None and job.expect_perplexity is not None:
            merged["perplexity"] = check_perplexity(job, reference["ppl"], plan.text_name)
        checkpoint, training, policy = qat_stage(plan, checkpoint, worker, progress)
        calibration = calibrated(plan, checkpoint, worker, progress)
    checkpoint = replace(checkpoint, parameters=reference["parameters"])
    bench = Bench(output, checkpoint, plan.source.max_length, job.threads, progress, failed)
    rows = [_reference_row(reference)]
    with store.temporary_folder(output, "scratch") as scratch:
        exports = Exports(plan, checkpoint, calibration, output, scratch, progress, bench, reference["scored"], policy)
        for variant in plan.variants:
            row = Result(variant.target, variant.precision)
            bench.attempt(row, partial(exports.export, row))
            rows.append(row)
    rows += [Result(variant.target, variant.precision, "skipped", reason) for variant, reason in plan.skipped.items()]
    bench.quality(rows)
    if job.speed:
        bench.speed(rows, job.repeats)
    return _finish(job, _describe(plan, checkpoint, reference, merged, training) | {"machine": here}, rows, output)


def bench_again(
    output: Path, threads: int | None, progress: Progress = silent, failed: Failed = nobody
) -> dict[str, Any]:
    """Measures an output folder's artifacts again, on this machine, against the stored reference; torch is not needed.

    Raises JobError where the folder holds no report.
    """
    output = output.resolve()
    report = read_report(output)
    job = Job.model_validate(report["job"] | {"output": str(output)} | ({"threads": threads} if threads else {}))
    here = machine.describe(job.threads)
    reference = store.read_manifest(output / "reference")
    if reference is None:
        raise JobError(f"{output}/reference is not there: run the job again to have a reference")
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
    rows = []
    for old in report["results"]:
        variant = Variant(old["target"], old["precision"])
        row = Result(variant.target, variant.precision)
        for name in (
            "path",
            "bytes",
            "size_ratio",
            "tokenizer_bytes",
            "export_s",
            "export_peak_rss_bytes",
            "quantization",
            "build",
        ):
            setattr(row, name, old.get(name))  # an older exporter's report may lack one
        if variant == known.REFERENCE:
            row = _reference_row(reference)
            if not checkpoint.path.is_dir():
                row.status, row.reason = (
                    "skipped",
                    "the checkpoint is not on this machine; its stored answers are the reference",
                )
        elif old["path"] is None:
            row.status, row.reason = old["status"], old["reason"]
        else:
            manifest = store.read_manifest(output / old["path"]) or {}
            row.reason = "; ".join(manifest.get("notes", ())) or None
        if row.status == "ok" and (reason := known.unavailable(variant, to_open=True)) is not None:
            row.status, row.reason = "skipped", reason
        rows.append(row)
    bench = Bench(output, checkpoint, report["evaluation"]["max_length"], job.threads, progress, failed)
    bench.quality(rows)
    bench.speed(rows, job.repeats)
    described = {key: report[key] for key in ("name", "model", "evaluation")}
    return _finish(job, described | {"machine": here}, rows, output)


def read_report(output: Path) -> dict[str, Any]:
    """report.json of an output folder. Raises JobError."""
    try:
        report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobError(
            f"{output} holds no readable report.json ({error}); give the folder that 'exporter run' wrote"
        ) from error
    if not isinstance(report, dict) or report.get("schema_version") != 1:
        raise JobError(f"{output}/report.json has another schema_version than 1; it is from another exporter")
    return report


def _take_over(output: Path, plan: Plan) -> None:
    """Marks the folder as this job's, and clears what an earlier job left that this one does not ask for."""
    wanted = {variant.folder for variant in plan.variants} | {"reference"}
    for path in output.iterdir():
        if path.is_dir() and (path / store.MANIFEST).is_file() and path.name not in wanted:
            shutil.rmtree(path)
    for name in ("report.json", "report.html", "report.md", "junit.xml"):  # of an earlier run: not this one's results
        (output / name).unlink(missing_ok=True)
    store.write_text(output / "job.json", json.dumps(plan.job.identity(), indent=2) + "\n")


def _reference(plan: Plan, checkpoint: Checkpoint, output: Path, worker: Worker, progress: Progress) -> dict[str, Any]:
    """The manifest of the reference's stored answers."""
    progress("reference", 0, 0)
    job = plan.job
    how = {"eval_tokens": job.eval_tokens, "window": plan.window, "stride": plan.stride}
    key = store.content_key(
        ["reference with tokenizer", checkpoint.sha256, checkpoint.task, plan.text, how, machine.versions()]
    )
    manifest: dict[str, Any] = worker(
        "reference",
        checkpoint=asdict(checkpoint),
        folder=output / "reference",
        key=key,
        threads=job.threads,
        text=plan.text,
        **how,
    )
    return manifest


def _reference_row(reference: dict[str, Any]) -> Result:
    """The reference's own row: compared with itself, and as large as its parameters are in float32."""
    row = Result(known.REFERENCE.target, known.REFERENCE.precision)
    row.bytes, row.size_ratio, row.engine = 4 * reference["parameters"], 1.0, reference["engine"]
    row.reason = "the reference: its size is 4 bytes for each parameter; it is not written to disk again"
    row.logit_error = 0.0
    if reference["ppl"] is not None:
        row.ppl, row.ppl_ratio, row.ppl_ratio_se, row.kl, row.top1 = reference["ppl"], 1.0, 0.0, 0.0, 1.0
    else:
        row.cosine = 1.0
    return row


def _describe(
    plan: Plan, checkpoint: Checkpoint, reference: dict[str, Any], merged: Any, training: Any
) -> dict[str, Any]:
    """What the report says of the model and of the evaluation."""
    return {
        "name": plan.job.model,
        "model": {
            "source": checkpoint.source,
            "sha256": checkpoint.sha256,
            "task": checkpoint.task,
            "parameters": checkpoint.parameters,
            "history": list(checkpoint.history),
            "notes": list(plan.source.notes),
            "merge": merged,
            "qat": training,
        },
        "evaluation": {
            "text": plan.text_name,
            "tokens_scored": reference["scored"],
            "window": plan.window,
            "stride": plan.stride,
            "reference_ppl": reference["ppl"],
            "reference_ppl_se": reference["ppl_se"],
            "reference": str(known.REFERENCE),
            "kl": "over the reference's 256 most likely tokens and one bucket for the rest: a lower bound",
            "max_length": plan.source.max_length,
        },
    }


def _finish(job: Job, described: dict[str, Any], rows: Sequence[Result], output: Path) -> dict[str, Any]:
    """Judges the rows by their gates, and writes and returns the report."""
    asked = frozenset(name for name, limit in asdict(job.gates(Gates())).items() if limit is not None)
    for row in rows:
        if row.status == "ok" and Variant(row.target, row.precision) != known.REFERENCE:
            limits = job.gates(known.get(row.target).precisions[row.precision].gates)
            row.gates = judge(limits, row, asked, described["evaluation"]["tokens_scored"])
        if row.status == "ok" and row.prefill_tokens_per_s is None:
            lack = f"latency: {row.untimed}" if row.untimed else "speed and memory: not measured (--no-speed)"
            row.reason = "; ".join(filter(None, (row.reason, lack)))
        elif row.status == "ok" and row.decode_tokens_per_s is None and row.ppl is not None:
            row.reason = "; ".join(
                filter(None, (row.reason, "decode: the model's positions are too few to measure it"))
            )
    status = EXIT_OK if all(row.passed for row in rows) else EXIT_GATE
    if any(row.status == "failed" for row in rows):
        status = EXIT_BUILD
    report = {
        "schema_version": 1,
        "exporter_version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **described,
        "job": job.model_dump(mode="json"),
        "results": [row.to_json() for row in rows],
        "passed": status == EXIT_OK,
        "exit_status": status,
    }
    write_report(report, output)
    return report


def write_report(report: dict[str, Any], output: Path) -> None:
    """Writes report.json, report.html, report.md and junit.xml; all are rendered before the first is written."""
    for name, text in render(report).items():
        store.write_text(output / name, text)
