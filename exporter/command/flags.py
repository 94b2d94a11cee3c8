"""Flags that are the fields of a job: each name, type, default and help is written in job.py only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

if TYPE_CHECKING:
    from pydantic import BaseModel


class JobCommand(click.Command):
    """`run`, `calibrate`, `merge`: their flags are the fields of Job or MergeJob, where each default is written."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        from exporter.job import Job, MergeJob

        own = super().get_params(ctx)
        taken = {"output"} if self.name == "calibrate" else set()  # it writes one file
        fields = job_options(MergeJob if self.name == "merge" else Job)
        return [*(option for option in fields if option.name not in taken), *own]


def job_options(kind: type[BaseModel]) -> list[click.Parameter]:
    """A click option for each field of a job. Unset flags stay out of it, so that the file's values hold."""
    options: list[click.Parameter] = []
    for name, field in kind.model_fields.items():
        flag = "--" + name.replace("_", "-")
        text = str(field.annotation)
        help_text = field.description or ""
        default = None if field.is_required() or field.default_factory else field.default
        if default and not isinstance(default, bool):
            help_text += f"  [default: {', '.join(default) if isinstance(default, tuple) else default}]"
        flags = {"model": ["-m", flag], "output": ["-o", flag], "target": ["-t", flag]}.get(name, [flag])
        if field.annotation is bool:
            flags = [f"{flag}/--no-{name}"] if field.default else [flag]
            options.append(click.Option(flags, is_flag=True, default=None, help=help_text))
            continue
        choices = [choice for part in (field.annotation, *get_args(field.annotation)) for choice in literals(part)]
        number = int if "int" in text else float if "float" in text else str
        # Where a file may stand in the place of one of the words, the job checks what it is.
        value = number if Path in get_args(field.annotation) or not choices else click.Choice(choices)
        options.append(click.Option(flags, type=value, multiple="tuple" in text, default=None, help=help_text))
    return options


def literals(annotation: Any) -> tuple[str, ...]:
    """The values of a Literal; of any other annotation none."""
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def given(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None and value != ()}
