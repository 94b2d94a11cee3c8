"""run(job): the whole program.

Check, merge, reference, prune, distill, train, calibrate, export, measure, judge, report.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from exporter import cache, machine, store
from exporter.forkserver import ForkServer, Start
from exporter.job import Job
from exporter.pipeline.calibrating import calibrated
from exporter.pipeline.distilling import distill_stage
from exporter.pipeline.exporting import Exports
from exporter.pipeline.figures import FOLDER, Figures
from exporter.pipeline.judging import finish
from exporter.pipeline.measuring import Bench, Failed, nobody
from exporter.pipeline.merging import check_perplexity, merge_stage
from exporter.pipeline.plan import Plan, make_plan
from exporter.pipeline.pruning import prune_stage
from exporter.pipeline.reference import reference_row, referred
from exporter.pipeline.training import qat_stage
from exporter.process import HUGE_PAGES, Progress, Stepped, Steps, Worker, silent, unheard
from exporter.report.result import Result
from exporter.targets import known
from exporter.types import Checkpoint


def run(job: Job, progress: Progress = silent, failed: Failed = nobody, stepped: Stepped = unheard) -> dict[str, Any]:
    """Does a job and returns its report, which is in the output folder too. Raises ExporterError before any work."""
    output = job.output.expanduser().resolve()
    store.writable(output)
    with (
        store.output_lock(output, job.wait, progress),
        store.swept(output),
        cache.using(),
        ForkServer() as server,
    ):
        return _run(job, output, progress, failed, stepped, server.start)


def _run(job: Job, output: Path, progress: Progress, failed: Failed, stepped: Stepped, start: Start) -> dict[str, Any]:
    here = machine.describe(job.threads)  # first of all: the load average must be that of others
    # One process for all that is done before the exports: what one operation reads, those after it find in memory.
    with Worker(output / "logs" / "prepare.log", job.threads, progress, HUGE_PAGES, start) as worker:
        plan = make_plan(job, worker)
        _take_over(output, plan)
        steps = Steps(stepped, plan.steps())
        if plan.source.adapters:
            steps("merge")
        checkpoint, merged = merge_stage(job, plan.source, plan.text, worker, progress)
        steps("reference")
        reference = referred(plan, checkpoint, output, worker, progress)
        if merged is not None and job.expect_perplexity is not None:
            merged["perplexity"] = check_perplexity(job, reference["ppl"], plan.text_name)
        if plan.prunings:
            steps("prune")
        given = (plan.prunings, checkpoint, plan.calibration, job.threads)
        original = checkpoint
        checkpoint, pruned = prune_stage(*given, worker, progress)
        if plan.distillation is not None:
            steps("distill")
        by = (plan.distillation, original, checkpoint, job.threads)
        checkpoint, distilled = distill_stage(*by, worker, progress)
        if plan.training is not None:
            steps("train")
        checkpoint, training, policy = qat_stage(plan, checkpoint, worker, progress)
        if any(wanted.calibrates for wanted in plan.wanted):
            steps("calibrate")
        calibration = calibrated(plan, checkpoint, worker, progress)
    checkpoint = replace(checkpoint, parameters=reference["parameters"])
    evaluation = {"text": plan.text, "tokens": job.eval_tokens, "window": plan.window, "stride": plan.stride}
    figures = Figures(output, evaluation, use=not job.remeasure)
    bench = Bench(output, checkpoint, plan.source.max_length, job.threads, progress, failed, figures, start, job.device)
    rows = [reference_row(reference)]
    with store.temporary_folder(output, "scratch") as scratch:
        scored = reference["scored"]
        exports = Exports(plan, checkpoint, calibration, output, scratch, progress, bench, scored, policy, start)
        for wanted in plan.wanted:
            steps(f"export {wanted.variant}")
            row = Result(wanted.variant.target, wanted.variant.precision)
            bench.attempt(row, partial(exports.export, wanted, row))
            rows.append(row)
    rows += [Result(variant.target, variant.precision, "skipped", reason) for variant, reason in plan.skipped.items()]
    bench.quality(rows, steps)
    if job.speed:
        steps("speed")
        bench.speed(rows, job.repeats, job.speed_budget, job.generation)
    told = _describe(plan, checkpoint, reference, (merged, pruned, distilled, training))
    return finish(job, told | {"machine": here}, rows, output)


def _take_over(output: Path, plan: Plan) -> None:
    """Marks the folder as this job's, and clears what an earlier job left that this one does not ask for."""
    wanted = {wanted.variant.folder for wanted in plan.wanted} | {"reference"}
    for path in output.iterdir():
        if path.is_dir() and (path / store.MANIFEST).is_file() and path.name not in wanted:
            shutil.rmtree(path)
    for path in (output / FOLDER).glob("*.json"):
        if path.stem not in {*wanted, known.REFERENCE.folder}:
            path.unlink()
    for name in ("report.json", "report.html", "report.md", "junit.xml"):  # of an earlier run: not this one's results
        (output / name).unlink(missing_ok=True)
    store.write_text(output / "job.json", json.dumps(plan.sections.identity(plan.job), indent=2) + "\n")


def _describe(plan: Plan, checkpoint: Checkpoint, reference: dict[str, Any], stages: tuple[Any, ...]) -> dict[str, Any]:
    """What the report says of the model, of its stages (merge, prune, distill, qat) and of the evaluation."""
    merged, pruned, distilled, training = stages
    return {
        "name": plan.job.model,
        "job": plan.whole_job(),
        "model": {
            "source": checkpoint.source,
            "sha256": checkpoint.sha256,
            "task": checkpoint.task,
            "parameters": checkpoint.parameters,
            "history": list(checkpoint.history),
            "notes": list(plan.source.notes),
            "merge": merged,
            "prune": pruned,
            "distill": distilled,
            "qat": training,
        },
        "evaluation": {
            "text": plan.text_name,
            "tokens_scored": reference["scored"],
            "tokens": reference["tokens"],
            "window": plan.window,
            "stride": plan.stride,
            "reference_ppl": reference["ppl"],
            "reference_ppl_se": reference["ppl_se"],
            "reference": str(known.REFERENCE),
            "kl": "over the reference's 256 most likely tokens and one bucket for the rest: a lower bound",
            "max_length": plan.source.max_length,
            "perplexity": reference.get("perplexity"),
            "pooling": reference.get("pooling"),
            "data": reference.get("data"),
        },
    }
