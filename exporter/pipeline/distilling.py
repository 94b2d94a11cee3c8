"""Distillation as a stage: a teacher and a smaller student in, a checkpoint of the student that was taught out."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from exporter import cache, machine, store
from exporter.pipeline.distillations import Distillation
from exporter.pipeline.labelled import tokenize_examples
from exporter.pipeline.merging import TOOLS
from exporter.pipeline.zeros import has_zeros
from exporter.process import Progress, Session, Worker
from exporter.stages.distill.options import DistillOptions
from exporter.stages.prune.student import parse_shape
from exporter.tasks.known import TASKS
from exporter.types import GENERATION, Checkpoint

_HELD_OUT = 1.1  # of what is learned on: one example in twenty is held out


def distill_stage(
    plan: Distillation | None,
    original: Checkpoint,
    student: Checkpoint,
    threads: int,
    worker: Worker,
    step: Progress,
) -> tuple[Checkpoint, Any]:
    """The taught checkpoint in the cache, and the record; without a plan the student, and None."""
    if plan is None:
        return student, None
    step("distillation", 0, 0)
    told = told_of(plan, original)
    key = key_of(plan, original, student, told)
    folder = cache.DISTILLED.entry(key)
    made = worker(distill_checkpoint, checkpoint=student, folder=folder, key=key, threads=threads, **told)
    history = (*student.history, *made["history"])
    return replace(student, path=folder, sha256=key, history=history), made["record"]


def told_of(plan: Distillation, original: Checkpoint) -> dict[str, Any]:
    """What a worker is told of a distillation, besides the student and where it goes."""
    teacher = plan.teacher or original
    return {
        "teacher": teacher.path,
        "teacher_name": teacher.source,
        "options": plan.options.model_dump(mode="json"),
        "lessons": plan.lessons,
    }


def key_of(plan: Distillation, original: Checkpoint, student: Checkpoint, told: Mapping[str, Any]) -> str:
    """What decides the weights that come out."""
    tools = {tool: version for tool, version in machine.versions().items() if tool in (*TOOLS, "accelerate")}
    teacher = plan.teacher or original
    made_of = [student.sha256, teacher.sha256, plan.options.identity(), told["lessons"]]
    return store.content_key(["distill", made_of, tools])


def distill_checkpoint(
    session: Session,
    checkpoint: Checkpoint,
    teacher: str,
    teacher_name: str,
    folder: str,
    key: str,
    threads: int,
    options: dict[str, Any],
    lessons: dict[str, Any],
) -> dict[str, Any]:
    """A worker's operation: publishes the taught checkpoint, unless it is there under its key; what is known of it.

    The states of the training are this maker's too: they have the same key.
    """
    import torch

    from exporter.checkpoint.model import load_model
    from exporter.stages.distill.distill import distill
    from exporter.stages.prune.student import cut_student

    torch.set_num_threads(threads)
    states = cache.STATES.entry(key)
    with store.one_maker(Path(folder), session.waiting):
        store.used(states)
        if (manifest := store.reusable(Path(folder), key)) is None:
            chosen = DistillOptions.model_validate(options)
            load = partial(
                load_model, task=checkpoint.task, dtype="float32", trust_remote_code=checkpoint.trust_remote_code
            )
            student = load(checkpoint.path).eval()
            cut = None if chosen.student is None else cut_student(student, parse_shape(chosen.student))
            learned = _lessons(checkpoint, chosen, **lessons)
            with store.publish(Path(folder)) as building:
                made = distill(
                    load, load(Path(teacher)), student, checkpoint.path, learned, chosen, building, states,
                    session.counted("distillation"),
                )  # fmt: skip
                record = {**made["record"], "teacher_name": teacher_name, "cut": cut}
                history = [*([] if cut is None else cut.pop("history")), *made["history"]]
                weights = [path.name for path in building.glob("*.safetensors")]
                zeros = has_zeros((), checkpoint.path)
                facts = {"history": history, "record": record, "proof": "reloaded", "zeros": zeros}
                manifest = store.write_manifest(building, key, weights, facts)
            shutil.rmtree(states, ignore_errors=True)
    return {name: manifest[name] for name in ("history", "record")}


def _lessons(
    checkpoint: Checkpoint,
    options: DistillOptions,
    name: str,
    task: str,
    problem_type: str,
    window: int,
    text: str,
    skip: int,
    data: dict[str, Any] | None,
) -> Any:
    """What is learned on, as tokens: whole windows of a text, a classifier's lines, or labelled examples."""
    from exporter.checkpoint.tokenizer import read_tokenizer
    from exporter.stages.distill.distill import Lessons

    tokenizer = read_tokenizer(checkpoint.path, checkpoint.trust_remote_code)
    pad = tokenizer.pad_token_id or 0
    most = int(options.steps * options.batch * options.accumulate * window * _HELD_OUT) + 2 * window
    rows: list[dict[str, Any]] = []
    if task == GENERATION:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][skip : skip + most]
        whole = range(0, len(ids) - window + 1, window)
        return Lessons(name, [{"input_ids": ids[begin : begin + window]} for begin in whole], task, "", pad)
    values = None
    if data is not None:
        passages, labels, _ = tokenize_examples(tokenizer, data, task, window)
        values = labels.values
    else:
        passages = TASKS[task].read(tokenizer, text, skip + most, window, window)
    seen, special = 0, tokenizer.num_special_tokens_to_add()
    bounds = list(zip(passages.offsets[:-1].tolist(), passages.offsets[1:].tolist(), strict=True))
    for number, (begin, end) in enumerate(bounds):
        if seen >= skip:
            row = {"input_ids": passages.ids[begin:end].tolist()}
            if passages.segments is not None:
                row["token_type_ids"] = passages.segments[begin:end].tolist()
            if values is not None:
                row["labels"] = values[number].tolist()
            rows.append(row)
        seen += end - begin - special
    return Lessons(name, rows, task, problem_type, pad)
