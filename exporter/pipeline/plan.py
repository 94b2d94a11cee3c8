"""Everything that can be checked before the first second of work: names, packages, texts, weights, disk, output.

What comes out is data. The rest of the program reads it and asks nothing of this file again.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from exporter.cache import MERGED, PREPARATIONS, using
from exporter.checkpoint.load import is_recipe
from exporter.device import gpu_number, was_asked
from exporter.errors import BuildError
from exporter.form import FORMS
from exporter.job import Job
from exporter.measure.embedding import Embedding, read_embedding
from exporter.pipeline.candidates import calibration_lines, evaluation_labels
from exporter.pipeline.combinations import Asked, check
from exporter.pipeline.covering import check_forms
from exporter.pipeline.distillations import Distillation, check_options, plan_distillation
from exporter.pipeline.given import check_cost, given_policy, quantizes
from exporter.pipeline.inputs import SOUNDS, calibration_list, evaluation_list, reads
from exporter.pipeline.labelled import LabelledData, labelled_data, usual_window
from exporter.pipeline.labelled_sounds import labelled_sounds
from exporter.pipeline.lengths import lengths_of
from exporter.pipeline.output import refuse_other_results
from exporter.pipeline.pairs import paired_data
from exporter.pipeline.prunings import calibrated_by, check_task, read_prunings, reshaped_by
from exporter.pipeline.sampling import check_samples
from exporter.pipeline.sections import Sections, read_sections
from exporter.pipeline.source import Source, look
from exporter.pipeline.texts import TOPICS, calibration_told, evaluation_text, first_half, window_of
from exporter.pipeline.trainings import Training, how_of, plan_training
from exporter.pipeline.zeros import has_zeros
from exporter.process import Progress, Session, Worker
from exporter.quantization.policy import Policy
from exporter.quantization.prepared import copies
from exporter.quantization.preparing import How
from exporter.report.labelled import data_line
from exporter.stages.prune.options import Pruning
from exporter.store import cache_folder, content_key, refuse_full_disk
from exporter.targets import known
from exporter.types import FEATURES, TASKS, Checkpoint, Gates, Preparation, Target, Variant


@dataclass(frozen=True)
class Wanted:
    """A variant that will be built, and all that is known of it before any work.

    `limits`: the gates that it must keep. `calibrates`: its target wants the statistics of the layers' inputs. `how`:
    how its policy is made (the fields of exporter.quantization.preparing.How, as JSON has them); None: it is exported
    from the checkpoint as it is.
    """

    variant: Variant
    options: BaseModel | None
    limits: Gates
    calibrates: bool
    how: dict[str, Any] | None

    @property
    def target(self) -> Target:
        return known.get(self.variant.target)


@dataclass(frozen=True)
class Plan:
    """A job whose every part has been looked at. `calibration`: what a worker is told of its text; None: not needed."""

    job: Job
    sections: Sections
    source: Source
    wanted: tuple[Wanted, ...]
    skipped: dict[Variant, str]
    text_name: str
    text: str = field(repr=False)
    data: LabelledData | None = field(repr=False)  # its own text is `text` then
    embedding: Embedding | None = field(repr=False)  # how a sentence-transformers folder makes a text's vector
    window: int
    stride: int
    calibration: dict[str, Any] | None = field(repr=False)
    prunings: tuple[Pruning, ...]
    distillation: Distillation | None
    training: Training | None
    labels: tuple[str, ...] = ()  # the texts that pictures are matched with

    def whole_job(self) -> dict[str, Any]:
        """The job with every default, those of the sections that matter to it included."""
        named = [*(one.variant.target for one in self.wanted), *(self.job.model_extra or {})]
        return self.job.model_dump(mode="json") | self.sections.resolved(named)

    def steps(self) -> list[str]:
        """The names of the steps that a run tells of, in their order."""
        names = ["check"] + ["merge"] * bool(self.source.adapters) + ["reference"]
        names += ["prune"] * bool(self.prunings) + ["distill"] * bool(self.distillation)
        names += ["train"] * bool(self.training)
        names += ["calibrate"] * any(one.calibrates for one in self.wanted)
        names += [f"{what} {one.variant}" for what in ("export", "quality") for one in self.wanted]
        return names + ["speed"] * self.job.speed

    def describe(self) -> dict[str, Any]:
        """What --dry-run prints: the resolved job, and what it would do."""
        job, text = self.job, self.calibration
        steps = [f"merge the adapter {adapter.path} ({self.source.way})" for adapter in self.source.adapters]
        words = reads(self.source.checkpoint.task) is None
        amount = f"{job.calib_tokens} tokens of " if words else ""
        steps += [f"calibrate on {amount}{text['name']}"] if text else []
        steps.append(f"measure {self._evaluated()} with {known.REFERENCE}")
        steps += [f"prune {one}: {one.how.summary}" for one in self.prunings]
        steps += [f"distill {its.steps} steps" for its in (self.sections.distill,) if its]
        steps += [f"train {qat.steps} steps as {qat.scheme} (QAT)"] if (qat := self.sections.qat) else []
        for one in self.wanted:
            steps += [f"choose the policy of {one.variant}"] if one.how and one.how["policy"] is None else []
            steps.append(f"export, check and measure {one.variant}")
        steps += [f"skip {variant}: {reason}" for variant, reason in self.skipped.items()]
        resolved = {"task": self.source.checkpoint.task, "window": self.window, "stride": self.stride}
        resolved["target"] = [str(one.variant) for one in self.wanted]
        return {
            "job": self.whole_job() | resolved,
            "checkpoint": asdict(self.source.checkpoint),
            "steps": steps,
        }

    def _evaluated(self) -> str:
        if self.data is None and reads(self.source.checkpoint.task) is not None:
            return self.text_name
        what = f"{self.job.eval_tokens} tokens" if self.data is None else data_line(self.data.about)
        return f"{what} of {self.text_name}"


def make_plan(job: Job, worker: Worker, command: str = "run") -> Plan:
    """Checks a command's job, the cheap things first. Raises JobError, or BuildError for what cannot be built here."""
    sections = read_sections(job)
    gpu_number(job.device)  # raises for a GPU that is not there
    for text in job.target:
        for task in TASKS:  # the task is not known yet: names must be right for any of them
            known.parse(text, task)
    if (absent := known.missing(known.get(known.REFERENCE.target), known.REFERENCE.precision)) is not None:
        raise absent  # an environment that only measures: without these not even the model can be looked at
    prunings, output = read_prunings(job.prune), job.output.expanduser()
    asked = Asked(command, prunings, sections.distill, job.policy)
    check(asked)
    check_options(sections.distill)
    refuse_other_results(output, job, sections)
    text_name, text = evaluation_text(job.eval_text, is_recipe(job.model))
    source = look(job, worker)
    task = source.checkpoint.task
    if (kind := reads(task)) is not None:
        text_name, text = evaluation_list(job, kind)
    if labels := evaluation_labels(job, task):
        text_name = f"{text_name}, each with {len(labels)} texts"
    check_samples(job, task)
    check_forms(job, task)
    encodes = FORMS[task].encodes
    if kind is SOUNDS:
        data = labelled_sounds(job)
    else:
        data = paired_data(job, task) if encodes else labelled_data(job, task, source.config, source.labels)
    if data is not None:
        text_name, text = data.about["file"], data.text
    elif encodes and kind is None:
        text = first_half(text) if text_name == TOPICS else text
        text_name = f"{text_name} (neighbouring sentences, as source and target)"
    embedding = read_embedding(source.checkpoint.path) if task == FEATURES else None
    window, stride = window_of(job, task, source.max_length, usual_window(data, embedding))
    lengths_of(job, source)  # raises for a length that the model does not have
    variants, skipped = _variants(job, sections, source, window, prunings)
    policy, notes = given_policy(job, variants, source)
    source = replace(source, notes=(*source.notes, *notes))
    wanted = tuple(_wanted(job, sections, variant, source, policy) for variant in variants)
    check(replace(asked, hows=[one.how for one in wanted], zeros=has_zeros((), source.checkpoint.path)))
    _refuse_full_disk(output, source, wanted)
    trains = sections.qat is not None
    by_windows = trains or calibrated_by(prunings) or any(one.how for one in wanted)
    calibration = _calibration(job, source, text, by_windows or any(one.calibrates for one in wanted))
    measured_tokens = job.eval_tokens if data is None else len(text)
    check_task(prunings, task)
    distillation = plan_distillation(job, sections.distill, source, text, measured_tokens, worker)
    training = plan_training(job, sections.qat, source, text, policy)
    if calibration is not None and by_windows:
        worker(check_calibration, checkpoint=source.checkpoint, text=calibration)
    measured = (text_name, text, data, embedding, window, stride)
    stages = (prunings, distillation, training)
    return Plan(job, sections, source, wanted, skipped, *measured, calibration, *stages, labels)


def check_calibration(session: Session, checkpoint: Checkpoint, text: dict[str, Any]) -> None:
    """A worker's operation: refuses a text that gives too few windows to choose a policy by. Raises JobError."""
    from exporter.quantization.calibrate import policy_windows

    policy_windows(checkpoint, text)


def dry_plan(job: Job, progress: Progress) -> dict[str, Any]:
    """The plan of a job in words, with nothing written to its output folder."""
    with (
        using(),
        tempfile.TemporaryDirectory() as logs,
        Worker(Path(logs) / "prepare.log", job.threads, progress) as worker,
    ):
        return make_plan(job, worker).describe()


def _variants(
    job: Job, sections: Sections, source: Source, window: int, prunings: tuple[Pruning, ...]
) -> tuple[list[Variant], dict[Variant, str]]:
    """What will be built, and what is skipped and why. A variant that was named and cannot be built is an error."""
    task, config, path = source.checkpoint.task, source.config, source.checkpoint.path
    parameters = None if reshaped_by(prunings) else source.checkpoint.parameters
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
            where = Preparation(
                path, config, task, variant.precision, options, cache_folder(), job.offline, window, parameters
            )
            reason = target.check(config, task, variant.precision) or target.prepare(where)
        if target and reason is None and was_asked(job.device) and variant != known.REFERENCE:
            reason = known.placed(variant, job.device, task)[1]
        if reason is not None and named:
            raise BuildError(f"{variant} cannot be built here: {reason}")
        if reason is not None:
            skipped[variant] = reason
    return [one for one in chosen if one not in skipped and one != known.REFERENCE], skipped


def _wanted(job: Job, sections: Sections, variant: Variant, source: Source, policy: Policy | None) -> Wanted:
    target, task = known.get(variant.target), source.checkpoint.task
    precision, options = target.precisions[variant.precision], sections.targets.get(variant.target)
    how = None
    if quantizes(job, precision, task):
        check_cost(job, variant, task)
        how = how_of(job, precision.schemes, policy) | {
            "mixed": job.policy != "off",
            "smooth": job.smooth,
            "rounding": job.rounding,
            "sensitivity": job.sensitivity,
            "policy_cost": job.policy_cost,
            "ranges_per_octave": precision.ranges_per_octave,
            "rounds_outputs": precision.rounds_outputs,
            # Where there are none it is the same for all targets: one preparation serves them.
            "experts": target.experts and bool(source.experts),
            "convolutions": target.convolutions and reads(task) is not None,
        }
    calibrates = target.calibrates(variant.precision, options)
    calibrates = calibrates or (how is not None and target.convolutions and reads(task) is not None)
    limits = job.gates(precision.limits(task))
    return Wanted(variant, options, limits, calibrates, how)


def _calibration(job: Job, source: Source, evaluated: str, wanted: bool) -> dict[str, Any] | None:
    """What a worker is told of the text to calibrate on, where it is wanted. A text that was named is looked at."""
    if (kind := reads(source.checkpoint.task)) is not None:
        told = calibration_list(job, kind, evaluated) | calibration_lines(source.checkpoint.task)
        return told if wanted else None
    if not wanted and job.calib_text is None:
        return None
    # Of labelled data all, and of pairs of sentences more than the tokens that are counted.
    whole = job.eval_data is not None or FORMS[source.checkpoint.task].encodes
    measured = len(evaluated) if whole else job.eval_tokens
    told = calibration_told(job, source, evaluated, measured)
    return told if wanted else None


def _refuse_full_disk(output: Path, source: Source, wanted: tuple[Wanted, ...]) -> None:
    """A float graph, and on average half its size for each artifact; for policies the float checkpoint's weights, and
    the rounded one. In the cache what they are chosen from, and a merged checkpoint."""
    whole = 4 * source.checkpoint.parameters
    policies = 2 if any(one.how for one in wanted) else 0
    needs = {output: int(whole * (1 + len(wanted) / 2 + policies))}
    prepared = {
        content_key(how.dump()): copies(how) for how in (How.load(one.how).preparation() for one in wanted if one.how)
    }
    needs[PREPARATIONS.place()] = whole * sum(prepared.values())
    if source.adapters:
        needs[MERGED.place()] = whole
    refuse_full_disk(needs)
