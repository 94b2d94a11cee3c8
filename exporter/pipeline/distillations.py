"""What --distill-… asks for, looked at before any work."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.cache import STATES
from exporter.errors import JobError
from exporter.job import CompressJob, Job
from exporter.pipeline.labelled import class_names, kind_of, labelled_data
from exporter.pipeline.rows import KINDS
from exporter.pipeline.source import Source, look
from exporter.pipeline.texts import CALIB_TEXT, calibration_text, read_text, refuse_shared
from exporter.process import Session, Worker
from exporter.stages.distill.options import DistillOptions
from exporter.stages.prune.student import parse_shape
from exporter.store import refuse_full_disk
from exporter.tasks.known import TASKS
from exporter.types import CLASSIFICATION, FEATURES, GENERATION, Checkpoint

_DATA = "--distill-data"
_TAUGHT = (GENERATION, FEATURES, CLASSIFICATION)


@dataclass(frozen=True)
class Distillation:
    """A distillation that was looked at. `teacher` None: the model as it was before it was pruned or cut.

    `lessons`: what a worker is told of what is learned on (the arguments of `_lessons`, as JSON).
    """

    options: DistillOptions
    teacher: Checkpoint | None
    lessons: dict[str, Any] = field(repr=False)


def check_options(options: DistillOptions | None) -> None:
    """Raises JobError for a student that cannot be, or a text that cannot be read, before any model is looked at."""
    if options is None:
        return
    if options.data is not None and options.data.suffix not in KINDS:
        read_text(options.data, _DATA)
    if options.student is not None:
        parse_shape(options.student)


def plan_distillation(
    job: CompressJob, options: DistillOptions | None, source: Source, evaluated: str, measured: int, worker: Worker
) -> Distillation | None:
    """Looks at a job's distillation; `evaluated` and `measured` as in calibration_text. Raises JobError."""
    if options is None:
        return None
    task = source.checkpoint.task
    if task not in _TAUGHT:
        raise JobError(f"a distillation teaches models for {', '.join(_TAUGHT)}, and this one is for {task}")
    if task == FEATURES and options.student and parse_shape(options.student).hidden:
        raise JobError("--distill-student hidden:…: vectors of another width have no cosine with these; take layers")
    if task == FEATURES and options.alpha == 1:
        raise JobError("--distill-alpha 1: an encoder has no task of its own to learn: give less, such as 0.5")
    window = min(options.window or TASKS[task].window, source.max_length or TASKS[task].window)
    if options.window is not None and options.window > window:
        raise JobError(f"--distill-window {options.window}: the model has {source.max_length} positions")
    told: dict[str, Any] = {"task": task, "window": window, "data": None, "text": "", "skip": 0}
    told["problem_type"] = kind_of(task, source.config) if task == CLASSIFICATION else ""
    path = None if options.data is None else options.data.expanduser()
    if path is not None and path.suffix in KINDS:
        if task != CLASSIFICATION:
            why = f"labelled examples are for classifiers, and this model is for {task}"
            raise JobError(f"{_DATA} {path}: {why}: give a text")
        columns = {name: getattr(job, name, None) for name in ("text_column", "pair_column", "label_column")}
        asked = Job.model_validate({"model": job.model, "output": str(job.output), "eval_data": str(path), **columns})
        data = labelled_data(asked, task, source.config, source.labels)
        assert data is not None
        refuse_shared(str(path), data.text, evaluated, measured, _DATA)
        told |= {"name": path.name, "data": data.to_json()}
    elif task == CLASSIFICATION and options.alpha == 1:
        raise JobError("--distill-alpha 1: a text has no labels to learn: give --distill-data FILE.jsonl, or less")
    else:
        flag = CALIB_TEXT if path is None else _DATA
        name, text, skip = calibration_text(path or job.calib_text, source.recipe, evaluated, measured, flag)
        told |= {"name": name, "text": text, "skip": skip}
    # Two states and the one that is being written, each of weights and two moments; then what comes out.
    refuse_full_disk({STATES.place(): (3 * 3 + 1) * 4 * source.checkpoint.parameters})
    teacher = None
    if options.teacher is not None:
        alone = {"model": str(options.teacher.expanduser()), "adapter": (), "probe": None, "task": task}
        other = look(job.model_copy(update=alone), worker, measured=False)
        teacher = other.checkpoint
        worker(check_teacher, checkpoint=source.checkpoint, teacher=teacher.path)
        ours, theirs = class_names(source.config), class_names(other.config)
        if task == CLASSIFICATION and ours != theirs:
            raise JobError(
                f"--distill-teacher {options.teacher} has the labels {', '.join(theirs)}, and the model "
                f"{', '.join(ours)}: its answers are about others"
            )
    return Distillation(options, teacher, told)


def check_teacher(session: Session, checkpoint: Checkpoint, teacher: str) -> None:
    """A worker's operation: refuses a teacher that reads texts otherwise. Raises JobError."""
    from exporter.checkpoint.tokenizer import read_tokenizer

    trust = checkpoint.trust_remote_code
    ours, theirs = (read_tokenizer(Path(one), trust).get_vocab() for one in (checkpoint.path, teacher))
    if ours != theirs:
        other = next(word for word in sorted(ours.keys() | theirs.keys()) if ours.get(word) != theirs.get(word))
        raise JobError(
            f"--distill-teacher {teacher}: its vocabulary is another ({other!r} is {theirs.get(other, 'not there')} "
            f"there and {ours.get(other, 'not there')} here): its answers are about other tokens"
        )
