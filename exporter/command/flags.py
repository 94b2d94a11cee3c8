"""Flags that are the fields of a job and of its sections: each name, type, default and help is written with the field.

What all the commands of a job have is listed by HEADINGS, which `--help` shows in this order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import click

from exporter.errors import JobError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from exporter.job import CompressJob

# Under each heading its flags: fields of a job, the commands' own, and sections, which stand for all of theirs.
# Targets' sections come before the last one, each under a heading of its own.
HEADINGS: Mapping[str, Sequence[str]] = {
    "Common": (
        "model", "adapter", "target", "output", "policy_out", "config", "eval_text", "max_ppl_ratio", "dry_run",
        "force", "format", "verbose", "help",
    ),
    "Merging": (
        "combine", "density", "merge", "merge_dtype", "merge_base", "base_quant", "probe", "expect_perplexity",
    ),
    "Evaluation": (
        "task", "eval_tokens", "window", "stride", "eval_data", "text_column", "pair_column", "label_column",
        "sample", "perplexity", "eval_images", "eval_labels", "eval_audio",
    ),
    "Gates": (
        "max_kl", "min_top1", "max_tokenizer_errors", "min_cosine", "max_regression_error", "min_pearson",
        "min_spearman", "max_size_ratio", "max_logit_error", "proven_length", "max_accuracy_drop", "max_f1_drop",
        "max_spearman_drop", "min_greedy_agreement", "max_wer_rise", "min_transcripts",
    ),
    "Pruning": ("prune",),
    "Distillation": ("distill",),
    "Calibration and policies": (
        "calib_text", "calib_tokens", "calib_images", "calib_audio", "policy", "force_policy", "ranges", "smooth",
        "rounding", "sensitivity", "policy_cost",
    ),
    "Quantization-aware training": ("qat",),
    "Running": (
        "device", "threads", "offline", "trust_remote_code", "speed", "repeats", "speed_budget", "generation",
        "remeasure", "wait",
    ),
}  # fmt: skip
_SECTIONS = "sections"  # the parameter that holds them, while flags are read
_SHORT = {"model": "-m", "output": "-o", "target": "-t"}


VERBOSE = click.option("-v", "--verbose", is_flag=True, help="Name each part of a step on stderr, in pipes too.")
WAIT = click.option("--wait", is_flag=True, help="Wait while another process of exporter works on the folder.")
FORMAT = click.option(
    "--format",
    "form",
    type=click.Choice(["human", "json"]),
    default="human",
    show_default=True,
    help="json: the last line of stdout is the result.",
)


class JobCommand(click.Command):
    """`run`, `calibrate`, `compress`, `merge`: their flags are the fields of their job, and a Job's sections."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        from exporter.job import CompressJob, Job, MergeJob

        own = super().get_params(ctx)
        taken = {"output", "wait"} if self.name == "calibrate" else set()  # it writes one file
        kinds: dict[str | None, type[BaseModel]] = {"merge": MergeJob, "compress": CompressJob}
        kind = kinds.get(self.name, Job)
        fields = field_options(kind)
        sections = section_options(kind) if issubclass(kind, CompressJob) else []
        return [*(option for option in fields if option.name not in taken), *sections, *own]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        told = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            named = _renamed(error.option_name) if isinstance(error, click.NoSuchOption) else None
            if (now := named or _old_text(told)) is None:
                raise
            raise now from error

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, params in headed(self.get_params(ctx)).items():
            with formatter.section(heading):
                formatter.write_dl([record for one in params if (record := one.get_help_record(ctx)) is not None])


class SectionOption(click.Option):
    """A flag of a section's field, or of the whole section: its value goes into the section's own mapping."""

    def __init__(self, flags: list[str], section: str, key: str | None, **how: Any) -> None:
        super().__init__(flags, expose_value=False, default=None, **how)
        self.section, self.key = section, key

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        value, args = super().handle_parse_result(ctx, opts, args)
        if _is_given(value):
            section = ctx.params.setdefault(_SECTIONS, {}).setdefault(self.section, {})
            section.update({} if self.key is None else {self.key: value})
        return value, args


def field_options(kind: type[BaseModel]) -> list[click.Parameter]:
    """A click option for each field of a job. Unset flags stay out of it, so that the file's values hold."""
    from exporter.job_keys import flag

    options: list[click.Parameter] = []
    for name, field in kind.model_fields.items():
        names = [_SHORT[name], flag(name)] if name in _SHORT else [flag(name)]
        options.append(click.Option(_on_or_off(names, field), default=None, **_how(field)))
    return options


def section_options(kind: type[CompressJob]) -> list[click.Parameter]:
    """The same of every section of a kind of job: of targets, installed ones included, and of stages."""
    from exporter.job_keys import flag
    from exporter.pipeline import sections

    options: list[click.Parameter] = []
    for section, model in sections.models(kind).items():
        if section in sections.STAGES:
            text = "Turn this stage on, as each of its flags does."
            options.append(SectionOption([flag(section)], section, None, is_flag=True, help=text))
        for key, field in model.model_fields.items():
            options.append(SectionOption(_on_or_off([flag(section, key)], field), section, key, **_how(field)))
    return options


def _on_or_off(names: list[str], field: FieldInfo) -> list[str]:
    """A flag that is on by default gets its opposite."""
    on = field.annotation is bool and field.default
    return [*names[:-1], f"{names[-1]}/--no-{names[-1].removeprefix('--')}"] if on else names


def _how(field: FieldInfo) -> dict[str, Any]:
    """click's words for a field's type, and its help."""
    help_text = (field.description or "") + _default(field)
    if field.annotation is bool:
        return {"is_flag": True, "help": help_text}
    leaves = list(_leaves(field.annotation))
    choices = [value for leaf in leaves if get_origin(leaf) is Literal for value in get_args(leaf)]
    number = int if int in leaves else float if float in leaves else str
    # Where a file may stand in the place of one of the words, the job checks what it is.
    value = number if Path in leaves or not choices else click.Choice(choices)
    return {"type": value, "multiple": _is_tuple(field.annotation), "help": help_text}


def _default(field: FieldInfo) -> str:
    default = shown_default(field)
    return f"  [default: {default}]" if default and field.annotation is not bool else ""


def shown_default(field: FieldInfo) -> str:
    """A field's default as a user would write it; "" where there is none."""
    if field.is_required() or field.default_factory or field.default in (None, ()):
        return ""
    if isinstance(field.default, bool):
        return "on" if field.default else "off"
    return ", ".join(field.default) if isinstance(field.default, tuple) else str(field.default)


def _leaves(annotation: Any) -> Iterator[Any]:
    """The types that a value may have, or its items. One that is read from text of its own kind (4G) is text."""
    if get_origin(annotation) is Annotated:
        kind, *how = get_args(annotation)
        yield from (str,) if any(hasattr(one, "json_schema_input_type") for one in how) else _leaves(kind)
    elif get_origin(annotation) in (Union, UnionType, tuple):
        for one in get_args(annotation):
            yield from _leaves(one)
    else:
        yield annotation


def _is_tuple(annotation: Any) -> bool:
    return tuple in (get_origin(one) for one in (annotation, *get_args(annotation)))


def headed(params: Sequence[click.Parameter]) -> dict[str, list[click.Parameter]]:
    """A command's parameters by their headings, in HEADINGS' order; a target's flags under its name and summary."""
    found: dict[str, list[click.Parameter]] = {}
    last = list(HEADINGS)[-1]
    for heading, names in HEADINGS.items():
        if heading == last:
            found |= _targets(params)
        found[heading] = [one for name in names for one in params if name == heads(one)]
    return {heading: those for heading, those in found.items() if those}


def _targets(params: Sequence[click.Parameter]) -> dict[str, list[click.Parameter]]:
    from exporter.targets import known

    named = {name for names in HEADINGS.values() for name in names}
    found: dict[str, list[click.Parameter]] = {}
    for one in params:
        if isinstance(one, SectionOption) and one.section not in named:
            found.setdefault(f"{one.section} ({known.get(one.section).summary})", []).append(one)
    return found


def heads(param: click.Parameter) -> str:
    """What HEADINGS calls a flag: its section, or itself."""
    own = max(param.opts, key=len).removeprefix("--").replace("-", "_")
    return param.section if isinstance(param, SectionOption) else own


def _renamed(option: str) -> JobError | None:
    """For a flag that there once was: what it is called now."""
    from exporter.job_keys import RENAMED, flag

    name = option.removeprefix("--")
    no = "no-" if name.startswith("no-") else ""
    now = RENAMED.get(name.removeprefix(no).replace("-", "_"))
    if now is None:
        return None
    return JobError(f"{option} is {' or '.join(f'--{no}{flag(*one)[2:]}' for one in now)} now")


def _old_text(args: Sequence[str]) -> JobError | None:
    """For a stage's options as one text, which it once took: how they are written now."""
    from exporter.job_keys import RENAMED, flag

    for option, text in pairwise(args):
        if option.removeprefix("--") in RENAMED and (key := re.match(r"(\w+)=([^,]*)", text)):
            return JobError(f"{option} {text}: each option is a flag now, such as {flag(option[2:], key[1])} {key[2]}")
    return None


def _is_given(value: Any) -> bool:
    return value is not None and value != ()


def given(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a job, sections included, of which a flag was typed: all else is left to the job file."""
    typed = {name: value for name, value in flags.items() if _is_given(value)}
    sections: dict[str, Any] = typed.pop(_SECTIONS, {})
    return typed | sections
