"""Quantization-aware training as a stage of `exporter run`: a checkpoint in, one that was trained to be rounded out."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from exporter import cache, machine, store
from exporter.pipeline.plan import Plan
from exporter.process import Progress, Session, Worker
from exporter.quantization.policy import FLOAT, Policy
from exporter.stages.train.options import QatOptions
from exporter.types import GENERATION, Checkpoint


def qat_stage(
    plan: Plan, checkpoint: Checkpoint, worker: Worker, progress: Progress
) -> tuple[Checkpoint, Any, Policy | None]:
    """The trained checkpoint in the cache, the record of its training, and the policy that it was trained for.

    Without --qat: the checkpoint as it is, None, None.
    """
    if plan.training is None:
        return checkpoint, None, None
    progress("training", 0, 0)
    told: dict[str, Any] = {
        "how": plan.training.how,
        "calibration": plan.calibration,
        "options": plan.training.options.identity(),
        **plan.training.text,
        "max_length": plan.source.max_length,
    }
    tools = {tool: version for tool, version in machine.versions().items() if tool in _TOOLS}
    key = store.content_key(["qat", checkpoint.sha256, told, tools])
    folder = cache.TRAINED.entry(key)
    states = cache.STATES.entry(key)
    made = worker(
        train_checkpoint,
        checkpoint=checkpoint,
        threads=plan.job.threads,
        folder=folder,
        states=states,
        key=key,
        **told,
    )
    policy = Policy.model_validate(made["policy"])
    trained = replace(checkpoint, path=folder, sha256=key, history=(*checkpoint.history, *made["history"]))
    return trained, made["record"], policy


_TOOLS = ("exporter", "peft", "transformers", "torch")  # peft: it merged what is trained


def train_checkpoint(
    session: Session,
    checkpoint: Checkpoint,
    folder: str,
    states: str,
    key: str,
    threads: int,
    *,
    how: dict[str, Any],
    calibration: dict[str, Any],
    options: dict[str, Any],
    name: str,
    text: str,
    skip: int,
    max_length: int | None,
) -> dict[str, Any]:
    """A worker's operation: publishes the trained checkpoint, unless it is there under its key; what is known of it.

    The states of the training are this maker's too: they have the same key.
    """
    with store.one_maker(Path(folder), session.waiting):
        store.used(Path(states))
        if (manifest := store.reusable(Path(folder), key)) is None:
            from transformers import AutoTokenizer

            from exporter.checkpoint.model import load_model
            from exporter.quantization.prepared import Prepared
            from exporter.quantization.preparing import How, prepare
            from exporter.stages.train.qat import train, training_windows

            chosen = QatOptions.model_validate(options)
            trust = checkpoint.trust_remote_code
            tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=trust)
            windows = training_windows(tokenizer, text, skip, name, chosen, max_length)
            load = partial(load_model, task=GENERATION, dtype="float32", trust_remote_code=trust)
            with store.publish(Path(folder)) as building:
                with store.temporary_folder(building, "prepared") as prepared:
                    asked = How.load(how)
                    prepare(checkpoint, asked, threads, session.counted, prepared, **calibration)
                    # Ranges to begin from: all the layers are trained.
                    schemes = Prepared.load(prepared, asked).lowest()
                step = session.counted("training")
                made = train(load, checkpoint.path, schemes, windows, chosen, building, Path(states), step)
                modules = {one: its or FLOAT for one, its in made["schemes"].items()}
                facts = {
                    "history": made["history"],
                    "record": {**made["record"], "text": name},
                    "policy": Policy(source=checkpoint.source, modules=modules).model_dump(mode="json"),
                }
                weights = [path.name for path in building.glob("*.safetensors")]
                manifest = store.write_manifest(building, key, weights, facts)
            shutil.rmtree(states, ignore_errors=True)
    return {name: manifest[name] for name in ("history", "record", "policy")}
