"""What `exporter compress` does: a checkpoint in, a smaller one out, an ordinary Hugging Face folder. No export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exporter import cache, store
from exporter.checkpoint.load import is_recipe
from exporter.errors import JobError
from exporter.job import CompressJob
from exporter.pipeline import distilling, pruning
from exporter.pipeline.combinations import Asked, check
from exporter.pipeline.distillations import check_options, plan_distillation
from exporter.pipeline.distilling import distill_checkpoint
from exporter.pipeline.merging import merge_stage, refuse_other_folder
from exporter.pipeline.pruning import prune_checkpoint, prune_stage
from exporter.pipeline.prunings import calibrated_by, check_task, read_prunings
from exporter.pipeline.sections import read_sections
from exporter.pipeline.source import look
from exporter.pipeline.texts import calibration_told, evaluation_text
from exporter.process import HUGE_PAGES, Operation, Progress, Stepped, Steps, Worker, unheard
from exporter.stages.distill.options import DistillOptions
from exporter.stages.prune.options import Pruning


def compress_only(job: CompressJob, progress: Progress, stepped: Stepped = unheard) -> dict[str, Any]:
    """Publishes a Hugging Face folder and returns the record. Raises ExporterError."""
    output = job.output.expanduser().absolute()
    prunings, distill = read_prunings(job.prune), read_sections(job).distill
    if not prunings and distill is None:
        raise JobError(
            "nothing to compress: say how with --prune METHOD[:AMOUNT], such as --prune width:0.2, or with "
            "--distill-student, such as layers:6"
        )
    check(Asked("compress", prunings, distill))
    check_options(distill)
    store.writable(output)
    with store.swept_beside(output), store.output_lock(output, job.wait, progress), cache.using():
        refuse_other_folder(output, job.force)
        return _compress(job, prunings, distill, output, progress, stepped)


def _compress(
    job: CompressJob,
    prunings: Sequence[Pruning],
    distill: DistillOptions | None,
    output: Path,
    progress: Progress,
    stepped: Stepped,
) -> dict[str, Any]:
    _, text = evaluation_text(job.eval_text, is_recipe(job.model))
    with Worker(cache.LOGS.entry("compress.log"), job.threads, progress, HUGE_PAGES) as worker:
        source = look(job, worker, measured=False)
        check_task(prunings, source.checkpoint.task)
        store.refuse_full_disk({output: 4 * source.checkpoint.parameters})
        # Nothing is measured here, so any text will do to learn on.
        plan = plan_distillation(job, distill, source, "", 0, worker)
        names = ["merge"] * bool(source.adapters) + ["prune"] * bool(prunings) + ["distill"] * (plan is not None)
        steps = Steps(stepped, ["check", *names])
        if source.adapters:
            steps("merge")
        checkpoint, merged = merge_stage(job, source, text, worker, progress)
        if prunings:
            steps("prune")
        calibration = calibration_told(job, source) if calibrated_by(prunings) else None
        with store.temporary_folder(output.parent, output.name) as building:
            folder = building / "smaller"  # what comes last is written there, what is before it is kept in the cache
            if plan is None:
                progress("pruning", 0, 0)
                told = pruning.told_of(prunings, calibration)
                key, student, pruned = pruning.key_of(checkpoint, told), checkpoint, None
                operation: Operation = prune_checkpoint
            else:
                student, pruned = prune_stage(prunings, checkpoint, calibration, job.threads, worker, progress)
                steps("distill")
                told = distilling.told_of(plan, checkpoint)
                key, operation = distilling.key_of(plan, checkpoint, student, told), distill_checkpoint
            made = worker(operation, checkpoint=student, folder=folder, key=key, threads=job.threads, **told)
            store.put(folder, output)
    stages = {"prune": pruned, "distill": made["record"]} if plan else {"prune": made["record"], "distill": None}
    history = [*student.history, *made["history"]]
    return {"merge": merged, **stages, "history": history, "notes": list(source.notes), "sha256": key}
