"""What a model reads that reads no text: the list of it that is measured on, and what a job cannot ask then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from exporter.checkpoint import pictures, sounds
from exporter.errors import JobError
from exporter.form import FORMS
from exporter.job import Job, MergeJob
from exporter.job_keys import flag

_SEEDS = {"eval": 0, "calib": 1}
# What a job may ask of a model that reads texts alone.
_OF_TEXTS = (
    "adapter", "prune", "distill", "qat", "probe", "expect_perplexity", "eval_text", "calib_text", "window", "stride",
    "sample", "proven_length", "max_accuracy_drop", "max_f1_drop", "max_spearman_drop",
)  # fmt: skip
_OF_EXAMPLES = ("eval_data", "text_column", "pair_column", "label_column")
_OF_SOUNDS = ("max_wer_rise", "min_transcripts")


@dataclass(frozen=True)
class Kind:
    """Samples of one kind. `lists`: the module that reads their lists; `count`: how many are made where none is given.

    `key`: what stands after eval_ and calib_ in the keys that name a folder of them.
    """

    name: str
    made: str
    lists: ModuleType
    key: str
    count: int
    labelled: bool  # whether examples of it can be given, by --eval-data

    @property
    def keys(self) -> tuple[str, ...]:
        return f"eval_{self.key}", f"calib_{self.key}"


PICTURES = Kind("pictures", "drawn pictures", pictures, "images", 64, labelled=False)
SOUNDS = Kind("sounds", "made sounds", sounds, "audio", 16, labelled=True)
_KINDS: Mapping[str, Kind] = {"pixels": PICTURES, "waveform": SOUNDS, "spectrogram": SOUNDS}


def reads(task: str) -> Kind | None:
    """The samples that a task's models read; None: texts."""
    return _KINDS.get(FORMS[task].inputs) if task in FORMS else None


def check_inputs(job: MergeJob, task: str) -> None:
    """Raises JobError for what says nothing of a model that reads such samples."""
    asked = job.model_dump(exclude_unset=True) | (job.model_extra or {})
    kind = reads(task)
    others = [key for one in (PICTURES, SOUNDS) if one is not kind for key in one.keys]
    refused = [*others, *(() if kind is SOUNDS else _OF_SOUNDS)]
    refused += [] if kind is PICTURES else ["eval_labels"]
    if kind is PICTURES and not FORMS[task].matches and asked.get("eval_labels") is not None:
        raise JobError(f"--eval-labels is for a model that matches pictures with texts, and this one is for {task}")
    if kind is not None:
        refused += [*_OF_TEXTS, *(() if kind.labelled else _OF_EXAMPLES)]
    for name in refused:
        if asked.get(name) not in (None, (), False):
            told = "" if kind is None else f"; {kind.name} are given with {' and '.join(map(flag, kind.keys))}"
            what = "texts" if kind is None else kind.name
            raise JobError(f"{flag(name)} is not for a model of {what}, and this one is for {task}{told}")


def evaluation_list(job: Job, kind: Kind) -> tuple[str, str]:
    """(what the report calls them, their list). Raises JobError."""
    return _named(job, kind, "eval")


def calibration_list(job: Job, kind: Kind, evaluated: str) -> dict[str, Any]:
    """What a worker is told of the samples to calibrate on: other ones than are measured on. Raises JobError."""
    name, listed = _named(job, kind, "calib")
    if (same := kind.lists.shared(evaluated, listed)) is not None:
        key = kind.keys[1]
        raise JobError(
            f"{getattr(job, key)} shares {kind.name} with what is measured on ({same}): learned from it, the figures "
            f"would flatter; give another {flag(key)}"
        )
    return {"name": name, "text": listed, "tokens": len(kind.lists.names(listed)), "skip": 0, "max_length": None}


def _named(job: Job, kind: Kind, what: str) -> tuple[str, str]:
    key = f"{what}_{kind.key}"
    folder: Path | None = getattr(job, key)
    if folder is None:
        return f"{kind.count} {kind.made}", kind.lists.drawn(kind.count, _SEEDS[what])
    listed = kind.lists.listed(folder, flag(key))
    return f"{len(kind.lists.names(listed))} {kind.name} of {folder.expanduser().resolve().name}", listed
