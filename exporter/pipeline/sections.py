"""What one target or stage alone can be asked: a section of the job, checked against the model of its owner.

Flags, the job file's JSON Schema and `exporter targets NAME` are made from the same models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from exporter.errors import JobError, unknown
from exporter.job import CompressJob, Job
from exporter.job_keys import complaint, flag, unknown_key
from exporter.stages.distill.options import DistillOptions
from exporter.stages.train.options import QatOptions
from exporter.targets import known

# A section of theirs turns them on, in their order; those of `exporter compress`, which does not export, are first.
COMPRESSING: Mapping[str, type[BaseModel]] = {"distill": DistillOptions}
STAGES: Mapping[str, type[BaseModel]] = {**COMPRESSING, "qat": QatOptions}


@dataclass(frozen=True)
class Sections:
    """The options of a job: of every target that has any, the defaults where the job says nothing, and its stages'."""

    targets: Mapping[str, BaseModel]
    distill: DistillOptions | None
    qat: QatOptions | None

    def resolved(self, targets: Iterable[str]) -> dict[str, Any]:
        """The sections of some targets, and of the stages that are on, as a job file could have them."""
        whole = {name: self.targets[name].model_dump(mode="json") for name in targets if name in self.targets}
        stages = {"distill": self.distill, "qat": self.qat}
        return {name: its.model_dump(mode="json") for name, its in stages.items() if its is not None} | whole

    def identity(self, job: Job) -> dict[str, Any]:
        """What makes two jobs the same, whether an option is written out or left to its default."""
        own = {name: value for name, value in job.identity().items() if name in Job.model_fields}
        return own | self.resolved(self.targets)


def models(kind: type[CompressJob] = Job) -> Mapping[str, type[BaseModel]]:
    """The model of each section that a kind of job may have: of stages and of targets, built-in or installed."""
    if kind is CompressJob:
        return COMPRESSING
    targets = {name: target.options for name, target in known.all_targets().items() if target.options is not None}
    return {**targets, **STAGES}


def read_sections(job: CompressJob) -> Sections:
    """A job's sections, checked all of them, whether its targets are asked for or not.

    Raises JobError with one line for each thing that is wrong.
    """
    there = models(type(job))
    made: dict[str, BaseModel] = {}
    wrong: list[str] = []
    for name, given in (job.model_extra or {}).items():
        try:
            if name in STAGES and isinstance(given, bool):
                made |= {name: there[name]()} if given else {}
            else:
                made[name] = _section(name, given, there, type(job).model_fields)
        except JobError as error:
            wrong.append(str(error))
    if wrong:
        raise JobError("; ".join(wrong))
    targets = {name: made.get(name) or model() for name, model in there.items() if name not in STAGES}
    distill, qat = made.get("distill"), made.get("qat")
    assert distill is None or isinstance(distill, DistillOptions)
    assert qat is None or isinstance(qat, QatOptions)
    return Sections(targets, distill, qat)


def _section(name: str, given: Any, there: Mapping[str, type[BaseModel]], fields: Iterable[str]) -> BaseModel:
    """One section's options. Raises JobError."""
    if name not in there and isinstance(given, dict):
        raise JobError(unknown("section", name, there))
    if name not in there:
        raise JobError(unknown_key(name, [*fields, *there]))
    model = there[name]
    if not isinstance(given, dict):
        option, field = next(iter(model.model_fields.items()))
        raise JobError(f"{name}: give its options, as in {name}: {{{option}: {str(field.default).lower()}}}")
    strange = [str(option) for option in given if option not in model.model_fields]
    if strange:
        raise JobError("; ".join(unknown(f"option of {name}", option, model.model_fields) for option in strange))
    try:
        return model.model_validate(given)
    except ValidationError as error:
        # A union complains once for each of its types: the first complaint of a field says what is wanted.
        first = {detail["loc"][:1]: detail for detail in reversed(error.errors())}
        lines = (complaint(flag(name, str(loc[0])) if loc else name, first[loc]) for loc in reversed(first))
        raise JobError("; ".join(lines)) from error


def job_schema() -> dict[str, Any]:
    """The JSON Schema of a job with its sections; any other key is refused."""
    schema = Job.model_json_schema()
    for name, model in models().items():
        own = model.model_json_schema(ref_template=f"#/properties/{name}/$defs/{{model}}")
        schema["properties"][name] = {"anyOf": [own, {"type": "boolean"}]} if name in STAGES else own
    return schema | {"additionalProperties": False}
