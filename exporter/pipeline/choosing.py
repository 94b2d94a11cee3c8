"""`exporter calibrate`: the policy of one variant and what it was chosen by, without an artifact."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from exporter import store
from exporter.errors import JobError
from exporter.job import Job
from exporter.pipeline.exporting import budget, limits, quantize_step
from exporter.pipeline.merging import merge_stage
from exporter.pipeline.plan import make_plan
from exporter.process import Progress, Worker
from exporter.quantization.quantizing import POLICY


def make_policy(job: Job, file: Path, progress: Progress) -> dict[str, Any]:
    """Writes the policy that `exporter run` would begin with to a file; returns its record. Raises ExporterError."""
    file = file.expanduser()
    store.writable(file.parent, "choose another file with --policy-out")
    log = store.cache_folder() / "logs" / "calibrate.log"
    with TemporaryDirectory() as folder, Worker(log, job.threads, progress) as worker:
        plan = make_plan(job.model_copy(update={"output": Path(folder)}), worker)
        if len(plan.variants) != 1 or not plan.quantizes(plan.variants[0]):
            asked = ", ".join(map(str, plan.variants)) or "none"
            raise JobError(
                f"a policy is made for one target that takes policies, not {asked}; such as -t onnx:int8-static"
            )
        [variant] = plan.variants
        checkpoint, _ = merge_stage(job, plan.source, plan.text, worker, progress)
        how, text = plan.how(variant), plan.calibration_text()
        began = perf_counter()
        prepared = Path(folder) / "prepared"
        prepared.mkdir()
        step = partial(quantize_step, checkpoint, how, job.threads, log, progress)
        step("quantize_prepare", text=text, folder=prepared)
        progress(f"choosing the policy of {variant}", 0, 0)
        allowed = budget(limits(job, variant), checkpoint.task)
        record: dict[str, Any] = step("quantize", prepared=prepared, budget=allowed, folder=folder)
        seconds = perf_counter() - began
        store.write_text(file, (Path(folder) / POLICY).read_text(encoding="utf-8"))
    return record | {"attempts": [], "seconds": seconds}
