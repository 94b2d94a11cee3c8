"""The texts that pictures are matched with, where a model does that, and others to calibrate the tower of texts on."""

from __future__ import annotations

from exporter.errors import JobError
from exporter.form import FORMS
from exporter.job import Job
from exporter.pipeline.texts import read_text, standard_library_topics
from exporter.tasks.zero_shot_image_classification import TEXTS

FLAG = "--eval-labels"
_FEWEST = 2  # texts that a picture is matched with


def evaluation_labels(job: Job, task: str) -> tuple[str, ...]:
    """A job's texts: its file's lines as they are, or the task's own; none of other tasks. Raises JobError."""
    if not FORMS[task].matches:
        return ()
    if job.eval_labels is None:
        return TEXTS
    lines = read_text(job.eval_labels, FLAG).splitlines()
    texts = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(texts) < _FEWEST:
        raise JobError(f"{job.eval_labels} has {len(texts)} text, and a picture is matched with at least {_FEWEST}")
    return texts


def calibration_lines(task: str) -> dict[str, str]:
    """What a worker is told beside the pictures to calibrate on: prose, of which no label is a line."""
    return {"beside": standard_library_topics()} if FORMS[task].matches else {}
