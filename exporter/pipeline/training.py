"""Quantization-aware training as a stage of `exporter run`: a checkpoint in, one that was trained to be rounded out."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter import machine, store
from exporter.quantization.policy import FLOAT, Policy
from exporter.stages.train.options import QatOptions
from exporter.types import GENERATION, Checkpoint

if TYPE_CHECKING:
    from exporter.pipeline.plan import Plan
    from exporter.process import Progress, Worker
    from exporter.quantization.preparing import Step


def qat_stage(
    plan: Plan, checkpoint: Checkpoint, worker: Worker, progress: Progress
) -> tuple[Checkpoint, Any, Policy | None]:
    """The trained checkpoint in the cache, the record of its training, and the policy that it was trained for.

    Without --qat: the checkpoint as it is, None, None.
    """
    if plan.training is None:
        return checkpoint, None, None
    progress("training", 0, 0)
    options, (name, text, skip) = plan.training
    told: dict[str, Any] = {
        "how": plan.how_trained(),
        "calibration": plan.calibration_text(),
        "options": options.identity(),
        "name": name,
        "text": text,
        "skip": skip,
        "max_length": plan.source.max_length,
    }
    tools = {tool: version for tool, version in machine.versions().items() if tool in _TOOLS}
    key = store.content_key(["qat", checkpoint.sha256, told, tools])
    folder = store.cache_folder() / "checkpoints" / f"trained-{key[:16]}"
    states = store.cache_folder() / "training" / key[:16]
    made = worker(
        "train", checkpoint=asdict(checkpoint), threads=plan.job.threads, folder=folder, states=states, key=key, **told
    )
    policy = Policy.model_validate(made["policy"])
    trained = replace(checkpoint, path=folder, sha256=key, history=(*checkpoint.history, *made["history"]))
    return trained, made["record"], policy


_TOOLS = ("exporter", "transformers", "torch")


def train_checkpoint(
    checkpoint: Checkpoint,
    folder: Path,
    states: Path,
    key: str,
    threads: int,
    step: Step,
    *,
    how: dict[str, Any],
    calibration: dict[str, Any],
    options: dict[str, Any],
    name: str,
    text: str,
    skip: int,
    max_length: int | None,
) -> dict[str, Any]:
    """The worker's side: publishes the trained checkpoint, unless it is there under its key; returns its manifest."""
    if (manifest := store.reusable(folder, key)) is not None:
        return manifest
    import shutil

    from transformers import AutoTokenizer

    from exporter.checkpoint.model import load_model
    from exporter.quantization.preparing import How, Prepared, prepare
    from exporter.stages.train.qat import train, training_windows

    chosen = QatOptions.model_validate(options)
    trust = checkpoint.trust_remote_code
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=trust)
    windows = training_windows(tokenizer, text, skip, name, chosen, max_length)
    store.sweep(folder.parent)
    with store.temporary_folder(folder.parent, "prepared") as prepared:
        prepare(checkpoint, How.load(how), threads, step, prepared, **calibration)
        schemes = Prepared.load(prepared).lowest()  # ranges to begin from: all the layers are trained
    load = partial(load_model, task=GENERATION, dtype="float32", trust_remote_code=trust)
    with store.publish(folder) as building:
        made = train(load, checkpoint.path, schemes, windows, chosen, building, states, step("training"))
        policy = Policy(source=checkpoint.source, modules={one: its or FLOAT for one, its in made["schemes"].items()})
        facts = {
            "history": made["history"],
            "record": {**made["record"], "text": name},
            "policy": policy.model_dump(mode="json"),
        }
        weights = [path.name for path in building.glob("*.safetensors")]
        manifest = store.write_manifest(building, key, weights, facts)
    shutil.rmtree(states, ignore_errors=True)
    return manifest
