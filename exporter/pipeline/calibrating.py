"""The statistics that some targets want of the float model: one pass over the calibration's text, for all of them.

And the keys of all that is found of a float model on a text, policies included.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporter import cache, machine, store
from exporter.checkpoint.folder import carried
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
    key = found_key("calibration statistics, windows", checkpoint, text)
    folder = cache.CALIBRATIONS.entry(key)
    worker(collect_statistics, checkpoint=checkpoint, folder=folder, key=key, threads=plan.job.threads, **text)
    return folder


def found_key(what: str, checkpoint: Checkpoint, text: dict[str, Any], *more: Any) -> str:
    """The key of what is found of a checkpoint on a text: `more` is what it depends on besides.

    Not on the threads: sums in another order differ by float32's rounding.
    """
    # What makes token ids or pixels of the text, and the model's own code: its weights' hash says nothing of them.
    beside = {name: store.sha256_file(path) for name, path in carried(checkpoint.path, []).items() if "/" not in name}
    return store.content_key([what, checkpoint.sha256, checkpoint.task, beside, text, machine.versions(), *more])


def collect_statistics(
    session: Session, checkpoint: Checkpoint, folder: str, key: str, threads: int, **text: Any
) -> None:
    """A worker's operation: publishes the statistics' folder, unless it is there under its key."""
    from exporter.quantization.calibrate import calibrate

    with store.one_maker(Path(folder), session.waiting):
        calibrate(checkpoint, Path(folder), key, threads, session.counted("calibrating"), **text)
