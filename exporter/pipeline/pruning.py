"""Pruning as a stage: a checkpoint in, a pruned one out, kept in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from exporter import cache, machine, store
from exporter.pipeline.merging import TOOLS
from exporter.pipeline.prunings import calibrated_by
from exporter.pipeline.zeros import has_zeros
from exporter.process import Progress, Session, Worker
from exporter.stages.prune.options import Pruning, parse
from exporter.types import Checkpoint

Text = dict[str, Any]  # what a worker is told of the text to calibrate on


def prune_stage(
    prunings: Sequence[Pruning], checkpoint: Checkpoint, text: Text | None, threads: int, worker: Worker, step: Progress
) -> tuple[Checkpoint, Any]:
    """The pruned checkpoint in the cache, and the record of its pruning; without prunings the checkpoint, and None."""
    if not prunings:
        return checkpoint, None
    step("pruning", 0, 0)
    told = told_of(prunings, text)
    key = key_of(checkpoint, told)
    folder = cache.PRUNED.entry(key)
    made = worker(prune_checkpoint, checkpoint=checkpoint, folder=folder, key=key, threads=threads, **told)
    pruned = replace(checkpoint, path=folder, sha256=key, history=(*checkpoint.history, *made["history"]))
    return pruned, made["record"]


def told_of(prunings: Sequence[Pruning], text: Text | None) -> dict[str, Any]:
    return {"prunings": [str(one) for one in prunings], "text": text if calibrated_by(prunings) else None}


def key_of(checkpoint: Checkpoint, told: dict[str, Any]) -> str:
    tools = {tool: version for tool, version in machine.versions().items() if tool in TOOLS}
    files = [store.sha256_file(file) for one in told["prunings"] if (file := parse(one).file) is not None]
    return store.content_key(["prune", checkpoint.sha256, told, files, tools])


def prune_checkpoint(
    session: Session,
    checkpoint: Checkpoint,
    folder: str,
    key: str,
    threads: int,
    prunings: list[str],
    text: Text | None,
) -> dict[str, Any]:
    """A worker's operation: publishes the pruned checkpoint, unless it is there under its key; what is known of it."""
    import torch

    from exporter.checkpoint.model import load_model
    from exporter.quantization.calibrate import policy_windows
    from exporter.stages.prune.prune import prune

    torch.set_num_threads(threads)
    with store.one_maker(Path(folder), session.waiting):
        if (manifest := store.reusable(Path(folder), key)) is None:
            trust = checkpoint.trust_remote_code
            windows = None if text is None else policy_windows(checkpoint, text)
            load = partial(load_model, task=checkpoint.task, dtype="float32", trust_remote_code=trust)
            with store.publish(Path(folder)) as building:
                asked = [parse(one) for one in prunings]
                made = prune(load, checkpoint.path, asked, windows, building, session.counted)
                record = {**made["record"], "text": text and text["name"]}
                weights = [path.name for path in building.glob("*.safetensors")]
                zeros = has_zeros(asked, checkpoint.path)
                facts = {"history": made["history"], "record": record, "proof": "reloaded", "zeros": zeros}
                manifest = store.write_manifest(building, key, weights, facts)
    return {name: manifest[name] for name in ("history", "record")}
