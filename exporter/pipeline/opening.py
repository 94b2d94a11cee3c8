"""What a worker does with an artifact: opens it on its device, compares its answers, and times it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from exporter import machine
from exporter.device import named as named_device
from exporter.errors import BuildError
from exporter.form import FORMS
from exporter.measure import latency, quality
from exporter.measure.lengths import FIGURE, LENGTHS, PROVEN, Lengths, compare_lengths
from exporter.measure.preprocessing import PROCESSED, Processed
from exporter.measure.probe import compare_probe
from exporter.measure.tokenization import TOKENIZED, TokenizedTexts, compare_tokenizer
from exporter.pipeline.comparing import compare
from exporter.pipeline.generating import agreement_of
from exporter.pipeline.pictures import processed
from exporter.pipeline.sounds import extracts
from exporter.process import Session
from exporter.runner import (
    BoundedRunner,
    DeviceRunner,
    PlacedRunner,
    Runner,
    Sample,
    StandInRunner,
    TokenizingRunner,
    TracingRunner,
)
from exporter.targets import known
from exporter.tasks.zero_shot_image_classification import match_with
from exporter.types import Checkpoint, Variant


def measure_quality(
    session: Session,
    variant: list[str],
    checkpoint: Checkpoint,
    folder: str,
    reference: str,
    threads: int,
    gpu: int | None,
) -> dict[str, Any]:
    """A worker's operation: an artifact's answers beside the reference's, samples of them, and what its runner is."""
    named = Variant(*variant)
    told = quality.Reference.load(Path(reference))
    with _open(named, checkpoint, folder, threads, gpu) as runner:
        try:
            task, (source, longest) = told.passages.task, told.passages.longest()
            figures = compare_probe(runner, told.probe, task, longest, source)  # seconds, and tells of much
            counted = session.counted(f"quality {named}")
            compared, samples = compare(runner, told, Path(reference).parent, checkpoint, counted)
            figures |= compared
            agreed = agreement_of(runner, Path(reference).parent, told.passages)
        except quality.NotFinite as error:
            first = runner.first_not_finite(error.ids) if isinstance(runner, TracingRunner) else None
            raise BuildError(f"{error}; first of its graph, {first}" if first else str(error)) from error
        figures |= extracts(Path(folder), checkpoint, Path(reference).parent)
        if (beside := Path(reference).with_name(PROCESSED)).is_file():
            figures |= processed(Path(folder), checkpoint, Processed.load(beside))
        if isinstance(runner, TokenizingRunner):
            figures |= compare_tokenizer(runner, TokenizedTexts.load(Path(reference).with_name(TOKENIZED)))
        where = None if isinstance(runner, StandInRunner) else gpu
        artifact: dict[str, Any] = {"engine": runner.engine, "device": named_device(where)}
        if isinstance(runner, PlacedRunner):
            artifact["placement"] = runner.placement(longest)
        groups: dict[str, Any] = {"artifact": artifact, "quality": figures, "generation": agreed}
        if isinstance(runner, StandInRunner):
            groups["speed"] = {"untimed": runner.untimed}
            groups["generation"] |= {"not_timed": runner.untimed} if agreed else {}
        if isinstance(runner, DeviceRunner):
            groups["memory"] = {"device_bytes": runner.device_memory_bytes}
    beside = Path(reference).with_name(LENGTHS)
    if FORMS[task].inputs == "text" and beside.is_file():  # an older exporter's reference has none
        opened = partial(_open, named, checkpoint, folder, threads, gpu)
        proven, figures[FIGURE] = compare_lengths(
            opened, Lengths.load(beside), task, session.counted(f"lengths {named}")
        )
        groups["artifact"][PROVEN] = proven
    return {"groups": groups, "samples": samples}


@dataclass(frozen=True)
class _Timed:
    """A runner that stays open between the rounds of the speed measurement, and what it is timed on."""

    runner: Runner
    ids: Sample
    max_length: int


def open_for_speed(
    session: Session,
    variant: list[str],
    checkpoint: Checkpoint,
    folder: str,
    reference: str,
    threads: int,
    gpu: int | None,
    max_length: int,
) -> dict[str, Any]:
    """A worker's operation: opens an artifact and warms it up."""
    told = quality.Reference.load(Path(reference)).passages
    ids = told.ids if told.sources is None else told.sources
    if FORMS[told.task].inputs == "pixels":
        ids = next(iter(told))
    elif FORMS[told.task].inputs == "waveform":
        ids = np.resize(told.longest()[1], latency.SECONDS * told.stride)
    elif FORMS[told.task].inputs == "spectrogram":
        ids = told.source(0)
    runner = _open(Variant(*variant), checkpoint, folder, threads, gpu).__enter__()
    match_with(runner, told)
    if isinstance(runner, BoundedRunner):
        max_length = min(max_length, runner.max_length)
    session.opened = _Timed(runner, ids, max_length)
    latency.warm_up(runner, ids, max_length)
    return {"engine": runner.engine, "device": named_device(gpu)}


def time_round(session: Session) -> dict[str, Any]:
    """A worker's operation: one round of the speed measurement with the runner that is open."""
    timed: _Timed = session.opened
    return {"times": latency.measure_round(timed.runner, timed.ids, timed.max_length), "peak": machine.peak_rss()}


def _open(variant: Variant, checkpoint: Checkpoint, folder: str, threads: int, gpu: int | None) -> Runner:
    if variant == known.REFERENCE:
        from exporter.targets.torch.target import open_checkpoint

        return open_checkpoint(checkpoint.path, checkpoint.task, threads, trust=checkpoint.trust_remote_code, gpu=gpu)
    target = known.get(variant.target)
    if gpu is None or target.open_cuda is None:
        return target.open(Path(folder), threads)
    return target.open_cuda(Path(folder), threads, gpu)
