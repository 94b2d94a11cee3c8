"""Pruning as a stage of `exporter run`, and what `exporter compress` does: a checkpoint in, a pruned one out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from exporter import machine, store
from exporter.checkpoint.load import is_recipe
from exporter.errors import JobError
from exporter.job import CompressJob
from exporter.pipeline.merging import TOOLS, merge_stage, refuse_other_folder
from exporter.pipeline.prunings import calibrated_by, read_prunings
from exporter.pipeline.source import Source, look
from exporter.pipeline.texts import calibration_text, evaluation_text
from exporter.process import HUGE_PAGES, Progress, Session, Stepped, Steps, Worker, unheard
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
    told = _told(prunings, text)
    key = _key(checkpoint, told)
    folder = store.cache_folder() / "checkpoints" / f"pruned-{key[:16]}"
    made = worker(prune_checkpoint, checkpoint=checkpoint, folder=folder, key=key, threads=threads, **told)
    pruned = replace(checkpoint, path=folder, sha256=key, history=(*checkpoint.history, *made["history"]))
    return pruned, made["record"]


def _told(prunings: Sequence[Pruning], text: Text | None) -> dict[str, Any]:
    return {"prunings": [str(one) for one in prunings], "text": text if calibrated_by(prunings) else None}


def _key(checkpoint: Checkpoint, told: dict[str, Any]) -> str:
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
    from exporter.quantization.preparing import windows_of
    from exporter.stages.prune.prune import prune

    torch.set_num_threads(threads)
    with store.one_maker(Path(folder), session.waiting):
        if (manifest := store.reusable(Path(folder), key)) is None:
            trust = checkpoint.trust_remote_code
            windows = None if text is None else windows_of(checkpoint.path, trust, text)
            load = partial(load_model, task=checkpoint.task, dtype="float32", trust_remote_code=trust)
            with store.publish(Path(folder)) as building:
                asked = [parse(one) for one in prunings]
                made = prune(load, checkpoint.path, asked, windows, building, session.counted)
                record = {**made["record"], "text": text and text["name"]}
                weights = [path.name for path in building.glob("*.safetensors")]
                facts = {"history": made["history"], "record": record, "proof": "reloaded"}
                manifest = store.write_manifest(building, key, weights, facts)
    return {name: manifest[name] for name in ("history", "record")}


def compress_only(job: CompressJob, progress: Progress, stepped: Stepped = unheard) -> dict[str, Any]:
    """Does `exporter compress`: publishes a Hugging Face folder and returns the record. Raises ExporterError."""
    output = job.output.expanduser().absolute()
    prunings = read_prunings(job.prune)
    if not prunings:
        raise JobError("nothing to compress: say how with --prune METHOD[:AMOUNT], such as --prune width:0.2")
    store.writable(output)
    with store.swept_beside(output), store.output_lock(output, job.wait, progress):
        refuse_other_folder(output, job.force)
        return _compress(job, prunings, output, progress, stepped)


def _compress(
    job: CompressJob, prunings: Sequence[Pruning], output: Path, progress: Progress, stepped: Stepped
) -> dict[str, Any]:
    _, text = evaluation_text(job.eval_text, is_recipe(job.model))
    with Worker(store.cache_folder() / "logs" / "compress.log", job.threads, progress, HUGE_PAGES) as worker:
        source = look(job, worker, measured=False)
        store.refuse_full_disk({output: 4 * source.checkpoint.parameters})
        steps = Steps(stepped, ["check"] + ["merge"] * bool(source.adapters) + ["prune"])
        if source.adapters:
            steps("merge")
        checkpoint, merged = merge_stage(job, source, text, worker, progress)
        steps("prune")
        progress("pruning", 0, 0)
        told = _told(prunings, _text(job, source) if calibrated_by(prunings) else None)
        key = _key(checkpoint, told)
        with store.temporary_folder(output.parent, output.name) as building:
            folder = building / "pruned"
            made = worker(prune_checkpoint, checkpoint=checkpoint, folder=folder, key=key, threads=job.threads, **told)
            store.put(folder, output)
    history = [*checkpoint.history, *made["history"]]
    return {"merge": merged, "prune": made["record"], "history": history, "notes": list(source.notes), "sha256": key}


def _text(job: CompressJob, source: Source) -> Text:
    """Nothing is measured here, so any text will do."""
    name, text, skip = calibration_text(job.calib_text, source.recipe, "", 0)
    return {"name": name, "text": text, "tokens": job.calib_tokens, "skip": skip, "max_length": source.max_length}
