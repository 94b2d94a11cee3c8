"""The model and its adapters, looked at before any work: what they are, and how they will be merged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exporter.checkpoint.folder import tokenizer_folder
from exporter.checkpoint.load import check_config, is_recipe, locate, prepare, read_config
from exporter.checkpoint.recipes import RECIPES, Recipe
from exporter.checkpoint.weights import Weights, check_weights, spare_files, stored_tensors, weight_files
from exporter.errors import JobError
from exporter.form import TASK_OF_ADAPTER
from exporter.job import MergeJob
from exporter.machine import available_memory
from exporter.pipeline.inputs import check_inputs
from exporter.pipeline.quantized_base import Base, base_of, check_base, hints, refuse_leftover
from exporter.process import Session, Worker
from exporter.stages.merge.adapter import STEM, Adapter, base_identity, check_combination, parse_adapter, read_adapter
from exporter.stages.merge.proof import read_probe
from exporter.store import content_key, sha256_folder
from exporter.types import Checkpoint

_WITH_HEADS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")  # PEFT's names of the tasks whose adapters bring a head
_HEADS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")  # with a row for each label
_IN_MEMORY = 1.5  # of the float32 weights: the model, and the tensors that PEFT computes beside it
_PROGRAM = 1 << 30  # bytes of Python, torch and a probe's activations


@dataclass(frozen=True)
class Source:
    """A checkpoint before the stages, and everything that a merge needs to know."""

    checkpoint: Checkpoint
    recipe: Recipe | None
    config: dict[str, Any]
    max_length: int | None
    adapters: tuple[Adapter, ...]
    adapter_hashes: tuple[str, ...]
    combine: str | None
    way: str  # memory or streaming
    base: Base
    identities: tuple[str, ...]  # of each adapter: whether this is its base
    labels: int | None  # classes of the head that an adapter brings
    notes: tuple[str, ...]
    linear_layers: tuple[str, ...]
    experts: tuple[str, ...]  # those of the linear layers that are an expert's
    bytes: int  # of the weights' files
    weights: Weights | None  # None: not read yet, a streaming merge does it on its way


def prepare_recipe(session: Session, recipe: str) -> str:
    """A worker's operation: the folder of a recipe's checkpoint, made float in the cache."""
    return str(prepare(RECIPES[recipe], session.waiting))


def inspect_checkpoint(session: Session, model: str, path: str, adapters: list[str], **asked: Any) -> dict[str, Any]:
    """A worker's operation: what transformers knows of a checkpoint, and notes on its adapters."""
    from exporter.checkpoint.inspection import inspect
    from exporter.stages.merge.told import notes_of

    notes = [note for adapter in adapters for note in notes_of(read_adapter(Path(adapter)))]
    known = inspect(model, Path(path), **{**asked, "tokenizer": Path(asked["tokenizer"])})
    return known | {"notes": [*notes, *known["notes"]]}


def look(job: MergeJob, worker: Worker, read_weights: bool = True, measured: bool = True) -> Source:
    """Checks the model and the adapters of a job, the cheap things first. Raises JobError.

    Without `read_weights` the files' headers alone are read where the merge will stream. `measured`: the model's task
    must be one that can be measured.
    """
    recipe = is_recipe(job.model)
    if job.probe is not None:
        read_probe(job.probe)
    adapters = [read_adapter(*parse_adapter(text), job.model) for text in job.adapter]
    combine = check_combination(adapters, job.combine, job.density)
    for adapter in adapters:
        check_weights(adapter.path, STEM)
    path, weights = locate(job.model, job.offline), None
    if recipe is not None and recipe.converted is not None and path == recipe.folder():  # not in the cache yet
        path = Path(worker(prepare_recipe, recipe=recipe.name))
    config = read_config(path)
    refuse_leftover(job.model, path, config)
    scheme = check_base(job, config, adapters)
    check_config(job.model, path, config, job.trust_remote_code, quantized=scheme is not None)
    way = _way(job, path, adapters)
    if read_weights or scheme is not None or way == "memory":
        weights = check_weights(path)  # before transformers reads any of it
    base = Base(path)
    if scheme is not None and weights is not None:
        base = base_of(job, path, config, weights, worker)
        way = _way(job, base.path, adapters)  # of the float weights
    labels = _labels(adapters)
    known = worker(
        inspect_checkpoint,
        model=job.model,
        path=base.path,
        adapters=[adapter.path.resolve() for adapter in adapters],
        task=job.task or next((task for task in map(_head_task, adapters) if task), None),
        trust=job.trust_remote_code,
        provided={
            base: adapter.tensors[name].shape[0] if adapter.tensors[name].shape else 1
            for adapter in adapters
            for base, name in adapter.names().items()
        },
        labels=labels,
        measured=measured,
        tokenizer=tokenizer_folder(base.path, [adapter.path for adapter in adapters]),
    )
    check_inputs(job, known["task"])
    stored = stored_tensors(base.path).values()
    identities = tuple(base_identity(one, job.model, weights.sha256 if weights else None) for one in adapters)
    notes = [*(recipe.notes if recipe else ()), *hints(job, adapters, scheme)]
    if spare := spare_files(path):
        read, others = weight_files(path)[0].name, ", ".join(one.name for one in spare[:3])
        notes.append(f"{path} holds files of an earlier save ({others}): as transformers does, {read} was read.")
    notes += known["notes"]
    if known["unused"]:
        notes.append(f"The model has no place for these tensors of the checkpoint: {known['unused']}.")
    return Source(
        Checkpoint(
            base.path,
            known["task"],
            job.model,
            content_key([weights.sha256 if weights else "", base.merged_into, scheme, read_config(base.path)]),
            known["parameters"],
            (f"loaded {job.model} ({', '.join(sorted({tensor.dtype for tensor in stored}))})", *base.history),
            job.trust_remote_code,
        ),
        recipe,
        known["config"],
        known["max_length"],
        tuple(adapters),
        tuple(sha256_folder(adapter.path) for adapter in adapters),
        combine,
        way,
        base,
        identities,
        labels,
        tuple(notes),
        tuple(known["linear_layers"]),
        tuple(known["experts"]),
        sum(tensor.end - tensor.begin for tensor in stored),
        weights,
    )


def _head_task(adapter: Adapter) -> str | None:
    """The task of an adapter whose model has a head that its base lacks."""
    kind = str(adapter.config.get("task_type"))
    return TASK_OF_ADAPTER[kind] if kind in _WITH_HEADS else None


def _labels(adapters: list[Adapter]) -> int | None:
    """How many classes the head has that an adapter brings; None: it brings none."""
    for adapter in adapters:
        names = adapter.names()
        for base, name in names.items():
            if _head_task(adapter) and base.endswith(_HEADS):
                return int(adapter.tensors[name].shape[0])
    return None


def memory_needed(parameters: int) -> int:
    """Bytes that a merge in memory takes at its peak, about."""
    return int(_IN_MEMORY * 4 * parameters) + _PROGRAM


def _way(job: MergeJob, path: Path, adapters: list[Adapter]) -> str:
    """memory or streaming: what was asked for, or what fits. Raises JobError for what only the other way can do."""
    if not adapters:
        return "memory"
    need = memory_needed(sum(tensor.numbers for tensor in stored_tensors(path).values()))
    free = available_memory()
    way = job.merge or ("streaming" if need > free else "memory")
    if way == "streaming" and job.probe is not None:
        why = "" if job.merge else f" (in memory it needs about {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free)"
        raise JobError(
            f"--probe runs the whole merged model, which a streaming merge does not{why}; use --merge memory"
        )
    return way


def merged_sha256(job: MergeJob, source: Source) -> str:
    """The identity of a source's checkpoint with its adapters merged: what decides the weights, and no more.

    A policy records it, which must be found again with another text, probe, way, or version of PEFT.
    """
    if not source.adapters:
        return source.checkpoint.sha256
    made_of = [source.checkpoint.sha256, source.adapter_hashes, [adapter.weight for adapter in source.adapters]]
    return content_key(["merged", made_of, source.combine, job.density, job.merge_dtype])


def adapters_of(source: Source) -> list[dict[str, Any]]:
    """What a report says of each adapter."""
    return [
        {
            "path": str(adapter.path),
            "method": adapter.kind,
            "weight": adapter.weight,
            "tensors": len(adapter.tensors),
            "identity": identity,
        }
        for adapter, identity in zip(source.adapters, source.identities, strict=True)
    ]


def with_hash(source: Source, sha256: str) -> Source:
    """The source with its adapters' bases compared with a hash that a streaming merge has found. Raises JobError."""
    named = source.checkpoint.source
    return replace(source, identities=tuple(base_identity(one, named, sha256) for one in source.adapters))
