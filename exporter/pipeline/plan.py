"""Everything that can be checked before the first second of work: names, packages, texts, weights, disk, output."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from exporter.checkpoint.load import is_recipe
from exporter.checkpoint.recipes import Recipe
from exporter.errors import BuildError, JobError
from exporter.job import Job, MergeJob
from exporter.pipeline.sections import Sections, read_sections
from exporter.pipeline.source import Source, look
from exporter.pipeline.texts import calibration_text, evaluation_text
from exporter.process import Progress, Worker
from exporter.quantization.policy import Policy, read_policy
from exporter.scheme import Scheme
from exporter.stages.train.options import HEAD, QatOptions
from exporter.store import MANIFEST, cache_folder, existing, sweep, writable
from exporter.targets import known
from exporter.types import GENERATION, TASKS, Preparation, Variant

WINDOWS = dict.fromkeys(TASKS, 128) | {GENERATION: 512}
_HEADROOM = 1.1


@dataclass(frozen=True)
class Plan:
    """A job whose every part has been looked at."""

    job: Job
    sections: Sections
    source: Source
    variants: tuple[Variant, ...]
    skipped: dict[Variant, str]
    text_name: str
    text: str = field(repr=False)
    window: int
    stride: int
    calibration: tuple[str, str, int] | None = field(repr=False)  # name, text, tokens to leave out; None: not needed
    policy: Policy | None = None  # that the job gives
    training: tuple[QatOptions, tuple[str, str, int]] | None = field(default=None, repr=False)  # and its text, as above

    def describe(self) -> dict[str, Any]:
        """What --dry-run prints: the resolved job, and what it would do."""
        reference = f"measure {self.job.eval_tokens} tokens of {self.text_name} with {known.REFERENCE}"
        steps = [f"merge the adapter {adapter.path} ({self.source.way})" for adapter in self.source.adapters]
        steps += [f"calibrate on {self.job.calib_tokens} tokens of {self.calibration[0]}"] if self.calibration else []
        steps.append(reference)
        steps += [f"train {qat.steps} steps as {qat.scheme} (QAT)"] if (qat := self.sections.qat) else []
        for variant in self.variants:
            steps += [f"choose the policy of {variant}"] if self.quantizes(variant) and self.policy is None else []
            steps.append(f"export, check and measure {variant}")
        steps += [f"skip {variant}: {reason}" for variant, reason in self.skipped.items()]
        resolved: dict[str, Any] = {"task": self.source.checkpoint.task, "window": self.window, "stride": self.stride}
        resolved["target"] = [str(variant) for variant in self.variants]
        asked = [variant.target for variant in self.variants]
        resolved |= self.sections.resolved([*asked, *(self.job.model_extra or {})])
        checkpoint = asdict(self.source.checkpoint)
        return {"job": self.job.model_dump(mode="json") | resolved, "checkpoint": checkpoint, "steps": steps}

    def quantizes(self, variant: Variant) -> bool:
        """Whether a variant is exported from a checkpoint that was quantized in float, under a policy."""
        return _quantizes(self.job, variant)

    def calibrates(self, variant: Variant) -> bool:
        """Whether a variant's target wants statistics of the layers' inputs itself."""
        return _calibrates(self.sections, variant)

    def how(self, variant: Variant) -> dict[str, Any]:
        """What exporter.quantization.quantizing is told of a variant's policy: the fields of its How, for JSON."""
        precision = known.get(variant.target).precisions[variant.precision]
        return self._how(
            precision.schemes,
            mixed=self.job.policy != "off",
            smooth=self.job.smooth,
            rounding=self.job.rounding,
            ranges_per_octave=precision.ranges_per_octave,
        )

    def how_trained(self) -> dict[str, Any]:
        """What a training begins from: every layer at the scheme that is trained for, or at the job's policy."""
        assert self.training is not None
        return self._how((self.training[0].layer_scheme(), HEAD), mixed=False, smooth=False, rounding="nearest")

    def _how(self, schemes: Iterable[Scheme], **choices: bool | str | int | None) -> dict[str, Any]:
        return {
            "schemes": [scheme.model_dump(mode="json") for scheme in schemes],
            "policy": None if self.policy is None else self.policy.model_dump(mode="json"),
            "ranges": self.job.ranges,
            **choices,
        }

    def calibration_text(self) -> dict[str, Any]:
        """What a worker is told of the text to calibrate on."""
        assert self.calibration is not None
        name, text, skip = self.calibration
        return {
            "name": name,
            "text": text,
            "tokens": self.job.calib_tokens,
            "skip": skip,
            "max_length": self.source.max_length,
        }


def _calibrates(sections: Sections, variant: Variant) -> bool:
    return known.get(variant.target).calibrates(variant.precision, sections.targets.get(variant.target))


def _quantizes(job: Job, variant: Variant) -> bool:
    schemes = known.get(variant.target).precisions[variant.precision].schemes
    if not schemes or isinstance(job.policy, Path):
        return bool(schemes)
    # Ranges must be found, and at 4 bits the layers differ most; targets round 8-bit weights well by their own rules.
    return schemes[0].input == "static" or (schemes[0].bits == 4 and job.policy == "auto")


def _policy(job: Job, variants: tuple[Variant, ...], source: Source) -> Policy | None:
    """The policy that a job gives, after a look at its names and at what the targets can do. Raises JobError."""
    if not isinstance(job.policy, Path):
        return None
    policy = read_policy(job.policy)
    resolved = policy.resolved(source.linear_layers)
    taken = [variant for variant in variants if _quantizes(job, variant)]
    if not taken:
        named = ", ".join(map(str, variants)) or "no target"
        raise JobError(f"--policy {job.policy}: {named} takes none; see 'exporter targets'")
    for variant in taken:
        for module, scheme in resolved.items():
            reason = scheme and known.get(variant.target).schemes(variant.precision, scheme)
            if reason:
                raise JobError(f"--policy {job.policy}: {variant} cannot make {module} {scheme}: {reason}")
    return policy


def make_plan(job: Job, worker: Worker) -> Plan:
    """Checks a job, the cheap things first. Raises JobError, or BuildError for what cannot be built here."""
    sections = read_sections(job)
    for text in job.target:
        for task in TASKS:  # the task is not known yet: names must be right for any of them
            known.parse(text, task)
    output = job.output.expanduser()
    _refuse_other_results(output, job)
    text_name, text = evaluation_text(job.eval_text, is_recipe(job.model))
    source = look(job, worker)
    window, stride = window_of(job, source.checkpoint.task, source.max_length)
    variants, skipped = _variants(job, sections, source, window)
    # A float graph, and on average half its size for each artifact; for a policy the smoothed float checkpoint and the
    # rounded one; and a merged checkpoint in the cache.
    whole = 4 * source.checkpoint.parameters
    policies = 2 if any(_quantizes(job, one) for one in variants) else 0
    needs = {output: int(whole * (1 + len(variants) / 2 + policies))}
    if source.adapters:
        needs[cache_folder() / "checkpoints"] = whole
    refuse_full_disk(needs)
    calibration = _calibration(job, sections, variants, source.recipe, text)
    policy = _policy(job, variants, source)
    training = _training(job, sections.qat, source, text)
    plan = Plan(
        job, sections, source, variants, skipped, text_name, text, window, stride, calibration, policy, training
    )
    if training or any(map(plan.quantizes, variants)):
        checkpoint = source.checkpoint
        where = {"path": checkpoint.path, "trust": checkpoint.trust_remote_code}
        worker("check_calibration", **where, text=plan.calibration_text())
    return plan


def _calibration(
    job: Job, sections: Sections, variants: tuple[Variant, ...], recipe: Recipe | None, evaluated: str
) -> tuple[str, str, int] | None:
    """The text to calibrate on, where a variant wants it or the job names one."""
    wanted = sections.qat is not None or any(_quantizes(job, one) or _calibrates(sections, one) for one in variants)
    if not wanted and job.calib_text is None:
        return None
    told = calibration_text(job.calib_text, recipe, evaluated, job.eval_tokens)
    return told if wanted else None


def _training(
    job: Job, options: QatOptions | None, source: Source, evaluated: str
) -> tuple[QatOptions, tuple[str, str, int]] | None:
    """The options and the text of quantization-aware training, where the job asks for it. Raises JobError."""
    if options is None:
        return None
    if source.checkpoint.task != GENERATION:
        raise JobError(f"--qat trains models for {GENERATION}, and this one is for {source.checkpoint.task}")
    text = calibration_text(options.data or job.calib_text, source.recipe, evaluated, job.eval_tokens)
    return options, text


def _variants(
    job: Job, sections: Sections, source: Source, window: int
) -> tuple[tuple[Variant, ...], dict[Variant, str]]:
    """What will be built, and what is skipped and why. A variant that was named and cannot be built is an error."""
    task, config, path = source.checkpoint.task, source.config, source.checkpoint.path
    chosen: dict[Variant, bool] = {}  # in order, each once; whether it was named
    for text in job.target:
        for variant in known.parse(text, task):
            chosen[variant] = chosen.get(variant, False) or not text.endswith("all")
    skipped = {}
    for variant, named in chosen.items():
        target = known.all_targets().get(variant.target)
        options = sections.targets.get(variant.target)
        reason = known.unavailable(variant, options)
        if target and reason is None:
            where = Preparation(path, config, task, variant.precision, options, cache_folder(), job.offline, window)
            reason = target.check(config, task, variant.precision) or target.prepare(where)
        if reason is not None and named:
            raise BuildError(f"{variant} cannot be built here: {reason}")
        if reason is not None:
            skipped[variant] = reason
    wanted = (variant for variant in chosen if variant not in skipped and variant != known.REFERENCE)
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
