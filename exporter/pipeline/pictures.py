"""A model that reads pictures: the reference's answers to them, and its processor beside an artifact's own."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from exporter.checkpoint import pictures
from exporter.checkpoint.load import read_config
from exporter.checkpoint.problem import problem_of
from exporter.checkpoint.processor import pixels, read_processor
from exporter.checkpoint.tokenizer import read_tokenizer
from exporter.checkpoint.two_towers import ids_of, longest_text
from exporter.device import named
from exporter.errors import JobError
from exporter.form import FORMS
from exporter.measure.lengths import LENGTHS, Lengths
from exporter.measure.preprocessing import FIGURE, PROCESSED, Processed, compare_processor
from exporter.measure.probe import together
from exporter.measure.quality import ANSWERS, Passages, Reference
from exporter.pipeline.labelled import class_names
from exporter.pipeline.sampling import write_samples
from exporter.process import Session
from exporter.report.result import Figure
from exporter.runner import Ids
from exporter.store import publish, reusable, write_manifest
from exporter.tasks import known as tasks
from exporter.tasks.zero_shot_image_classification import matched_with, padded
from exporter.types import Checkpoint, Probe

_PROBED = 3  # pictures at once: no batch that a graph was traced at
_PROCESSED = 4  # pictures that processors are compared on


def measure_pictures(
    session: Session,
    checkpoint: Checkpoint,
    folder: str,
    key: str,
    threads: int,
    text: str,
    gpu: int | None = None,
    labels: tuple[str, ...] = (),
) -> dict[str, Any]:
    """A worker's operation: publishes the reference's folder, unless it is there under its key; its manifest.

    `text` is the list of pictures, `labels` the texts that they are matched with.
    """
    if (manifest := reusable(Path(folder), key)) is not None:
        return manifest
    from exporter.checkpoint.opened import open_checkpoint

    processor = read_processor(checkpoint.path, checkpoint.trust_remote_code)
    problem = "" if labels else problem_of(checkpoint.path, checkpoint.task)
    read: Passages = tasks.TASKS[checkpoint.task].read(processor, text, 0, 0, 0)
    passages = replace(read, problem_type=problem)
    sources = mask_of_them = None
    if labels:
        passages, sources, mask_of_them = with_texts(checkpoint, passages, labels)
    with open_checkpoint(
        checkpoint.path, checkpoint.task, threads, trust=checkpoint.trust_remote_code, gpu=gpu
    ) as runner:
        answers = tasks.answer(runner, passages, session.counted("reference"))
        shown = np.stack([one for _, one in zip(range(_PROBED), passages, strict=False)])
        mask = np.ones(shown.shape[:2], np.int64)
        probe = Probe(shown, mask, np.zeros((0, 0), np.float32), None, sources, mask_of_them)
        probe = replace(probe, answers=together(runner, probe))
        facts: dict[str, Any] = {"parameters": runner.parameters(), "engine": runner.engine}
    if not np.isfinite(answers.vectors).all():
        raise JobError("the float model answers NaN or Inf on the pictures: no artifact can be compared with it")
    facts |= {"checkpoint": str(checkpoint.path), "device": named(gpu), "model_sha256": checkpoint.sha256}
    facts |= {"task": checkpoint.task, "problem_type": problem, "scored": len(passages.offsets) - 1, "tokens": None}
    facts |= dict.fromkeys(("ppl", "ppl_se", "samples", "pooling"))
    tried = [picture for _, picture in zip(range(_PROCESSED), pictures.read(text), strict=False)]
    with publish(Path(folder)) as building:
        Reference(passages, probe, answers).save(building / ANSWERS)
        Processed(tuple(tried), pixels(processor, tried)).save(building / PROCESSED)
        classes = FORMS[checkpoint.task].classifier and not labels
        names = class_names(read_config(checkpoint.path)) if classes else labels
        write_samples({"prompts": [], "stop": [], "names": list(names), "pictures": pictures.names(text)}, building)
        Lengths(0).save(building / LENGTHS)  # a picture has no length
        return write_manifest(building, key, [], facts)


def with_texts(checkpoint: Checkpoint, passages: Passages, labels: tuple[str, ...]) -> tuple[Passages, Ids, Ids]:
    """Pictures with the texts that they are matched with; and the probe's texts, padded, with their mask: the shortest,
    one as long as the model takes, and another. Raises JobError where a text is cut to what another is cut to."""
    tokenizer = read_tokenizer(checkpoint.path, checkpoint.trust_remote_code)
    longest = longest_text(read_config(checkpoint.path))
    texts = ids_of(tokenizer, labels, longest)
    told: dict[bytes, str] = {}
    for ids, label in zip(texts, labels, strict=True):
        if (same := told.setdefault(ids.tobytes(), label)) != label:
            raise JobError(f"the model reads {same!r} and {label!r} alike ({len(ids)} tokens): leave one out")
    [whole] = ids_of(tokenizer, [" ".join(labels * longest)], longest)
    return matched_with(passages, texts), *padded([min(texts, key=len), whole, texts[len(texts) // 2]])


def processed(folder: Path, checkpoint: Checkpoint, told: Processed) -> dict[str, Figure]:
    """How an artifact's own processor differs from the checkpoint's: the figure, or why there is none here."""
    if not all(map(find_spec, ("transformers", "PIL"))):
        return {FIGURE: Figure(detail="its processor was not compared: transformers and pillow are not installed here")}
    own = read_processor(folder, checkpoint.trust_remote_code)
    return compare_processor(partial(pixels, own), told)
