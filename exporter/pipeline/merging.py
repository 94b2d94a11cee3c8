"""Merging as a program of its own (`exporter merge`), and as the first stage of `exporter run`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from exporter import cache, machine, store
from exporter.checkpoint.folder import carried_sha256
from exporter.checkpoint.load import is_recipe
from exporter.errors import BuildError, JobError
from exporter.job import MergeJob
from exporter.pipeline.asking import measure_reference
from exporter.pipeline.source import Source, adapters_of, look, merged_sha256, with_hash
from exporter.pipeline.texts import evaluation_text, window_of
from exporter.process import HUGE_PAGES, Progress, Session, Stepped, Steps, Worker, unheard
from exporter.stages.merge.adapter import read_adapter
from exporter.types import Checkpoint

_TOLERANCE = 0.01  # of --expect-perplexity: another machine's float kernels, and bfloat16 in training
TOOLS = ("exporter", "peft", "transformers", "torch")


def merge_stage(job: MergeJob, source: Source, text: str, worker: Worker, progress: Progress) -> tuple[Checkpoint, Any]:
    """The checkpoint with the job's adapters merged into it, in the cache, and the record of the merge (None: none)."""
    base = source.checkpoint
    if not source.adapters:
        return base, None
    tools = {name: version for name, version in machine.versions().items() if name in TOOLS}
    told = {**how(job, source), "text": text[:_PROBE_TEXT]}
    travels = carried_sha256(base.path, [adapter.path for adapter in source.adapters])
    key = store.content_key(["merge", base.sha256, source.adapter_hashes, travels, told, _probe_hash(job), tools])
    folder = cache.MERGED.entry(key)
    record = _merge(source, told, folder, key, worker, progress)
    return replace(
        base, path=folder, sha256=merged_sha256(job, source), history=(*base.history, *record["history"])
    ), record


_PROBE_TEXT = 4000  # characters: more than the probe's tokens


def how(job: MergeJob, source: Source) -> dict[str, Any]:
    """What a worker is told of a merge besides the model and the adapters: the fields of stages.merge.How."""
    return {
        "combine": source.combine,
        "density": job.density,
        "dtype": job.merge_dtype,
        "probe": None if job.probe is None else str(job.probe.expanduser().resolve()),
        "svd_rank": max(int(one.config["r"]) for one in source.adapters) if source.combine == "svd" else None,
        "way": source.way,
        "labels": source.labels,
        "other_is_trained": source.base.merged_into == "original",
        "other": None if source.base.other is None else str(source.base.other),
    }


def _probe_hash(job: MergeJob) -> str | None:
    return None if job.probe is None else store.sha256_file(job.probe.expanduser())


def _merge(
    source: Source, told: dict[str, Any], folder: Path, key: str, worker: Worker, progress: Progress
) -> dict[str, Any]:
    progress(f"merging ({source.way})", 0, 0)
    start = perf_counter()
    made = worker(
        merge_adapters,
        checkpoint=source.checkpoint,
        adapters=[(adapter.path.resolve(), adapter.weight) for adapter in source.adapters],
        folder=folder,
        key=key,
        **told,
    )
    return {
        "way": source.way,
        "dtype": told["dtype"],
        "combine": told["combine"],
        "density": told["density"],
        "adapters": adapters_of(source),
        "proof": made["proof"],
        "merged_into": source.base.merged_into,
        "history": made["history"],
        "base_sha256": source.weights.sha256 if source.weights else made["source_sha256"],
        "seconds": perf_counter() - start,
        "peak_rss_bytes": made["peak_rss_bytes"],
    }


def merge_adapters(
    session: Session,
    checkpoint: Checkpoint,
    adapters: list[tuple[str, float | None]],
    folder: str,
    key: str,
    way: str,
    labels: int | None,
    **how: Any,
) -> dict[str, Any]:
    """A worker's operation: publishes the merged checkpoint, unless it is there under its key; what is known of it."""
    from exporter.checkpoint.model import Load, load_model
    from exporter.stages.merge.merge import How, merge
    from exporter.stages.merge.streaming import merge_streaming

    destination = Path(folder)
    with store.one_maker(destination, session.waiting):
        if (manifest := store.reusable(destination, key)) is None:
            options = {} if labels is None else {"num_labels": labels}
            trust = checkpoint.trust_remote_code
            load: Load = partial(load_model, task=checkpoint.task, dtype="float32", trust_remote_code=trust)
            load = partial(load, **options)
            told = [read_adapter(Path(path), weight, checkpoint.source) for path, weight in adapters]
            asked = How(**how | {name: how[name] and Path(how[name]) for name in ("probe", "other")}, trust=trust)
            with store.publish(destination) as building:
                if way == "streaming":
                    progress = session.megabytes("merging")
                    made = merge_streaming(load, checkpoint.path, told, building, asked, progress)
                else:
                    made = merge(load, checkpoint.path, told, building, asked, checkpoint.task)
                known = made.pop("hashes", {})
                weights = [path.name for path in building.glob("*.safetensors")]
                facts = made | {"peak_rss_bytes": machine.peak_rss()}
                manifest = store.write_manifest(building, key, weights, facts, known)
    return {name: manifest.get(name) for name in ("history", "proof", "source_sha256", "peak_rss_bytes")}


def merge_only(job: MergeJob, progress: Progress, stepped: Stepped = unheard) -> dict[str, Any]:
    """Does `exporter merge`: publishes a Hugging Face folder and returns the record. Raises ExporterError."""
    output = job.output.expanduser().absolute()
    if not job.adapter:
        raise JobError("nothing to merge: give the adapter's folder with --adapter DIR")
    store.writable(output)
    with store.swept_beside(output), store.output_lock(output, job.wait, progress), cache.using():
        return _merge_only(job, output, progress, stepped)


def _merge_only(job: MergeJob, output: Path, progress: Progress, stepped: Stepped) -> dict[str, Any]:
    refuse_other_folder(output, job.force)
    text_name, text = evaluation_text(job.eval_text, is_recipe(job.model))
    log = cache.LOGS.entry("merge.log")
    with Worker(log, job.threads, progress, HUGE_PAGES) as worker:
        source = look(job, worker, read_weights=False, measured=job.expect_perplexity is not None)
        if source.way == "streaming" and job.expect_perplexity is not None:
            raise JobError("--expect-perplexity runs the whole merged model, which a streaming merge does not")
        store.refuse_full_disk({output: merged_bytes(job, source)})
        told = {**how(job, source), "text": text[:_PROBE_TEXT]}
        key = store.content_key(["merge", source.checkpoint.sha256, source.adapter_hashes, told])
        steps = Steps(stepped, ["check", "merge"] + ["perplexity"] * (job.expect_perplexity is not None))
        steps("merge")
        with store.temporary_folder(output.parent, output.name) as building:
            merged = building / "merged"
            record = _merge(source, told, merged, key, worker, progress)
            if source.weights is None:  # the hash of the base is known only now that it has been read
                source = with_hash(source, record["base_sha256"])
                record["adapters"] = adapters_of(source)
            record["notes"] = list(source.notes)
            record["history"] = [*source.checkpoint.history, *record["history"]]
            checkpoint = replace(source.checkpoint, path=merged)
            if job.expect_perplexity is not None:
                steps("perplexity")
                window, stride = window_of(job, checkpoint.task, source.max_length)
                reference = worker(
                    measure_reference,
                    checkpoint=checkpoint,
                    folder=building / "reference",
                    key=key,
                    threads=job.threads,
                    text=text,
                    eval_tokens=job.eval_tokens,
                    window=window,
                    stride=stride,
                )
                record["perplexity"] = check_perplexity(job, reference["ppl"], text_name)
            store.put(merged, output)
    return record


def merged_bytes(job: MergeJob, source: Source) -> int:
    """What a merged checkpoint takes on disk."""
    numbers = source.checkpoint.parameters
    return source.bytes if job.merge_dtype == "keep" else numbers * (4 if job.merge_dtype == "float32" else 2)


def check_perplexity(job: MergeJob, found: float | None, text: str) -> float:
    """Refuses a merged model whose perplexity is not the expected one. Raises JobError or BuildError."""
    expected = job.expect_perplexity
    assert expected is not None
    if found is None:
        raise JobError("--expect-perplexity is for text generation: this model's task has no perplexity")
    if abs(found / expected - 1) > _TOLERANCE:
        raise BuildError(
            f"the merged model's perplexity on {job.eval_tokens} tokens of {text} is {found:.4g}, and "
            f"--expect-perplexity says {expected:g} (limit {_TOLERANCE:.0%}): another base, adapter or text"
        )
    return found


def refuse_other_folder(output: Path, force: bool) -> None:
    """Raises JobError for a folder that holds anything but a checkpoint of exporter's, or one that is to be kept."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    ours = output.is_dir() and "proof" in (store.read_manifest(output) or {})
    if not ours:
        raise JobError(f"{output} holds other files; choose a new folder with -o")
    if not force:
        raise JobError(
            f"{output} holds a model that exporter wrote; choose another folder with -o, or replace it with --force"
        )
