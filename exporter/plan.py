"""Everything that can be checked before the first second of work: names, packages, texts, weights, disk, output."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from exporter import targets
from exporter.errors import BuildError, JobError
from exporter.job import Job, MergeJob
from exporter.load import is_recipe
from exporter.process import Progress, Worker
from exporter.recipes import Recipe
from exporter.source import Source, look
from exporter.store import MANIFEST, cache_folder, existing, sweep, writable
from exporter.texts import calibration_text, evaluation_text
from exporter.types import GENERATION, TASKS, Preparation, Variant

WINDOWS = dict.fromkeys(TASKS, 128) | {GENERATION: 512}
_HEADROOM = 1.1


@dataclass(frozen=True)
class Plan:
    """A job whose every part has been looked at."""

    job: Job
    source: Source
    variants: tuple[Variant, ...]
    skipped: dict[Variant, str]
    text_name: str
    text: str = field(repr=False)
    window: int
    stride: int
    calibration: tuple[str, str, int] | None = field(repr=False)  # name, text, tokens to leave out; None: not needed

    def describe(self) -> dict[str, Any]:
        """What --dry-run prints: the resolved job, and what it would do."""
        reference = f"measure {self.job.eval_tokens} tokens of {self.text_name} with {targets.REFERENCE}"
        steps = [f"merge the adapter {adapter.path} ({self.source.way})" for adapter in self.source.adapters]
        steps += [f"calibrate on {self.job.calib_tokens} tokens of {self.calibration[0]}"] if self.calibration else []
        steps += [reference, *(f"export, check and measure {variant}" for variant in self.variants)]
        steps += [f"skip {variant}: {reason}" for variant, reason in self.skipped.items()]
        resolved = {"task": self.source.checkpoint.task, "window": self.window, "stride": self.stride}
        resolved["target"] = [str(variant) for variant in self.variants]
        checkpoint = asdict(self.source.checkpoint)
        return {"job": self.job.model_dump(mode="json") | resolved, "checkpoint": checkpoint, "steps": steps}


def make_plan(job: Job, worker: Worker) -> Plan:
    """Checks a job, the cheap things first. Raises JobError, or BuildError for what cannot be built here."""
    for text in job.target:
        for task in TASKS:  # the task is not known yet: names must be right for any of them
            targets.parse(text, task)
    output = job.output.expanduser()
    _refuse_other_results(output, job)
    text_name, text = evaluation_text(job.eval_text, is_recipe(job.model))
    source = look(job, worker)
    variants, skipped = _variants(job, source.checkpoint.task, source.config, source.checkpoint.path)
    window, stride = window_of(job, source.checkpoint.task, source.max_length)
    # A float graph, and on average half its size for each artifact; and a merged checkpoint in the cache.
    whole = 4 * source.checkpoint.parameters
    needs = {output: int(whole * (1 + len(variants) / 2))}
    if source.adapters:
        needs[cache_folder() / "checkpoints"] = whole
    refuse_full_disk(needs)
    calibration = _calibration(job, variants, source.recipe, text)
    return Plan(job, source, variants, skipped, text_name, text, window, stride, calibration)


def _calibration(
    job: Job, variants: tuple[Variant, ...], recipe: Recipe | None, evaluated: str
) -> tuple[str, str, int] | None:
    """The text to calibrate on, where a variant wants it or the job names one."""
    chosen = ((variant, targets.get(variant.target)) for variant in variants)
    wanted = any(target.calibrates(variant.precision, job.options(target.options)) for variant, target in chosen)
    if not wanted and job.calib_text is None:
        return None
    told = calibration_text(job.calib_text, recipe, evaluated, job.eval_tokens)
    return told if wanted else None


def _variants(
    job: Job, task: str, config: dict[str, Any], path: Path
) -> tuple[tuple[Variant, ...], dict[Variant, str]]:
    """What will be built, and what is skipped and why. A variant that was named and cannot be built is an error."""
    chosen: dict[Variant, bool] = {}  # in order, each once; whether it was named
    for text in job.target:
        for variant in targets.parse(text, task):
            chosen[variant] = chosen.get(variant, False) or not text.endswith("all")
    skipped = {}
    for variant, named in chosen.items():
        reason = targets.unavailable(variant) or targets.get(variant.target).check(config, task, variant.precision)
        if reason is None:
            target = targets.get(variant.target)
            chosen_options = job.options(target.options)
            reason = target.prepare(
                Preparation(path, config, task, variant.precision, chosen_options, cache_folder(), job.offline)
            )
        if reason is not None and named:
            raise BuildError(f"{variant} cannot be built here: {reason}")
        if reason is not None:
            skipped[variant] = reason
    wanted = (variant for variant in chosen if variant not in skipped and variant != targets.REFERENCE)
    return tuple(wanted), skipped


def window_of(job: MergeJob, task: str, max_length: int | None) -> tuple[int, int]:
    """Window and stride of the evaluation, in tokens. Raises JobError."""
    window = job.window or min(WINDOWS[task], max_length or WINDOWS[task])
    if max_length is not None and window > max_length:
        raise JobError(f"--window {window} is longer than this model's {max_length} positions")
    stride = job.stride or max(window // 2, 1)
    if task == GENERATION and stride >= window:
        raise JobError(
            f"--stride {stride} must be below the window, {window}: else a token would be scored without context"
        )
    return window, stride


def _refuse_other_results(output: Path, job: Job) -> None:
    """An output folder must be new, empty, or hold this job's earlier results; --force takes any of exporter's."""
    writable(output)
    sweep(output)
    # logs/ and job.json alone are what a run leaves that was stopped before its first result.
    nothing = {"logs", "job.json"}
    present = [path for path in output.glob("*") if not path.name.startswith(".") and path.name not in nothing]
    if not present:
        return
    report = output / "report.json"
    ours = report.is_file() or any((path / MANIFEST).is_file() for path in present) or (output / "job.json").is_file()
    if not ours:
        raise JobError(f"{output} holds other files ({present[0].name}); choose a new folder with -o")
    record = output / "job.json"
    try:
        same = json.loads(record.read_text(encoding="utf-8")) == job.identity()
    except (OSError, ValueError):
        same = False
    if not same and not job.force:
        raise JobError(
            f"{output} holds another job's results; choose another folder with -o, or replace them with --force"
        )


def refuse_full_disk(needs: dict[Path, int]) -> None:
    """Refuses what surely will not fit: the bytes that each folder is to receive. Raises BuildError."""
    for folder, bytes_needed in needs.items():
        need, free = int(_HEADROOM * bytes_needed), shutil.disk_usage(existing(folder)).free
        if free < need:
            raise BuildError(
                f"the disk of {folder} is too full: this job needs about {need / 1e6:,.0f} MB, and {free / 1e6:,.0f} "
                "MB are free; free some space, or choose another disk with -o (EXPORTER_CACHE for the cache)"
            )


def dry_plan(job: Job, progress: Progress) -> dict[str, Any]:
    """The plan of a job in words, with nothing written to its output folder."""
    import tempfile

    with tempfile.TemporaryDirectory() as logs, Worker(Path(logs) / "prepare.log", job.threads, progress) as worker:
        return make_plan(job, worker).describe()
