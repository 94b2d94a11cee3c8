"""The statistics that some targets want of the float model, once for all of them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from exporter import machine, store
from exporter.pipeline.plan import Plan
from exporter.process import Progress, Worker
from exporter.types import Checkpoint


def calibrated(plan: Plan, checkpoint: Checkpoint, worker: Worker, progress: Progress) -> Path | None:
    """The parent's side: the folder of the statistics that a plan wants, in the cache under its content key."""
    if not any(map(plan.calibrates, plan.variants)):
        return None
    progress("calibrating", 0, 0)
    how = plan.calibration_text()
    made_of = ["calibration statistics, windows", checkpoint.sha256, checkpoint.task, how, machine.versions()]
    key = store.content_key(made_of)
    folder = store.cache_folder() / "calibrations" / key
    worker("calibrate", checkpoint=asdict(checkpoint), folder=folder, key=key, threads=plan.job.threads, **how)
    return folder
