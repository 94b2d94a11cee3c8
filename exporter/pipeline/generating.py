"""Generation in the workers: the reference's continuations are stored, and an artifact is compared and timed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exporter.form import FORMS
from exporter.measure.generation import agreement, reference_answers, reference_continuations, time_generation
from exporter.measure.quality import Passages
from exporter.measure.samples import SAMPLES
from exporter.process import Session
from exporter.runner import Runner

KEY = "generation"  # in samples.json, beside the prompts that are shown


def continued(
    runner: Runner, tokenizer: Any, passages: Passages, stop: Sequence[int], max_length: int | None
) -> dict[str, Any]:
    """What is stored of the reference beside the samples: what every artifact is compared with."""
    if FORMS[passages.task].encodes:
        return {KEY: reference_answers(runner, passages, stop, max_length)}
    return {KEY: reference_continuations(runner, passages.ids, tokenizer.bos_token_id, stop, max_length)}


def agreement_of(runner: Runner, folder: Path, passages: Passages) -> dict[str, Any]:
    """A row's figures beside the continuations in the reference's folder; none where it has none."""
    if not FORMS[passages.task].cached or not (folder / SAMPLES).is_file():
        return {}
    told = json.loads((folder / SAMPLES).read_text(encoding="utf-8")).get(KEY)
    return {} if told is None else agreement(runner, told, passages)


def time_generations(session: Session) -> dict[str, Any]:
    """A worker's operation: one generation with the runner that is open, and some steps of each batch."""
    timed: Any = session.opened
    return time_generation(timed.runner, timed.ids, timed.max_length)
