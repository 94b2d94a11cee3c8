"""The statistics that some targets want of the float model: one pass over the calibration's text, for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporter import cache, machine, store
from exporter.pipeline.plan import Plan
from exporter.process import Progress, Session, Worker
from exporter.types import Checkpoint


def calibrated(plan: Plan, checkpoint: Checkpoint, worker: Worker, progress: Progress) -> Path | None:
    """The folder of the statistics, in the cache under their content key; None where no target wants any."""
    if not any(wanted.calibrates for wanted in plan.wanted):
        return None
    assert plan.calibration is not None
    progress("calibrating", 0, 0)
    text = plan.calibration
    made_of = ["calibration statistics, windows", checkpoint.sha256, checkpoint.task, text, machine.versions()]
    key = store.content_key(made_of)
    folder = cache.CALIBRATIONS.entry(key)
    worker(collect_statistics, checkpoint=checkpoint, folder=folder, key=key, threads=plan.job.threads, **text)
    return folder


def collect_statistics(
    session: Session, checkpoint: Checkpoint, folder: str, key: str, threads: int, **text: Any
) -> None:
    """A worker's operation: publishes the statistics' folder, unless it is there under its key."""
    from exporter.quantization.calibrate import calibrate

    with store.one_maker(Path(folder), session.waiting):
        calibrate(checkpoint, Path(folder), key, threads, session.counted("calibrating"), **text)
