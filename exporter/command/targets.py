"""`exporter targets`: what there is, and `exporter targets NAME`: all that one target offers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from shlex import join
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from exporter.checkpoint.recipes import RECIPES
from exporter.command.flags import shown_default
from exporter.command.show import print_pairs, stdout
from exporter.job_keys import flag
from exporter.targets import known
from exporter.types import Gates, Target, Variant


def print_targets(form: str) -> None:
    """Every target with its precisions, and the recipes."""
    targets = known.all_targets()
    recipes = {name: recipe.summary for name, recipe in RECIPES.items()}
    if form == "json":
        rows = [row for target in targets.values() for row in _precisions(target)]
        print(json.dumps({"targets": rows, "broken": dict(known.broken()), "recipes": recipes}))
        return
    console = stdout()
    for target in targets.values():
        _print_target(console, target)
    print_pairs(console, "Installed targets that cannot be used", known.broken())
    print_pairs(console, "Models that need no download: -m NAME", recipes)
    console.print("Options and an example of one target: exporter targets NAME", markup=False, highlight=False)


def print_one_target(name: str, form: str) -> None:
    """One target's precisions, options and an example. Raises JobError with the nearest names, or BuildError."""
    target = known.get(name)
    options, example = _options(target), _example(target)
    if form == "json":
        about = {"target": name, "summary": target.summary, "aliases": {**target.aliases}}
        print(json.dumps({**about, "precisions": _precisions(target), "options": options, "example": example}))
        return
    console = stdout()
    _print_target(console, target)
    for row in options:
        console.print(f"  [bold]{escape(row['flag'])}[/]", highlight=False)
        default = f"; default: {row['default']}" if row["default"] else ""
        for line in (row["help"], f"job file: {row['key']}{default}"):
            console.print(Padding(Text(line), (0, 0, 0, 6)))
    if not options:
        console.print("  It has no options of its own.", highlight=False)
    console.print(f"\n{example}", markup=False, highlight=False, soft_wrap=True)


def _given(gates: Gates) -> dict[str, float]:
    return {gate: limit for gate, limit in vars(gates).items() if limit is not None}


def _precisions(target: Target) -> list[dict[str, Any]]:
    return [
        {
            "target": target.name,
            "precision": precision,
            "default": precision == target.default,
            "summary": about.summary,
            "gates": _given(about.gates),
            "gates_by_task": {task: _given(gates) for task, gates in about.by_task.items()},
            "unavailable": known.unavailable(Variant(target.name, precision)),
        }
        for precision, about in target.precisions.items()
    ]


def _print_target(console: Console, target: Target) -> None:
    default = f"default: {target.default}"
    for alias, meanings in target.aliases.items():
        default += f"; {alias} is {' or '.join(sorted(set(meanings.values())))}, by the task"
    console.print(f"[bold]{escape(target.name)}[/]  {escape(target.summary)}\n{escape(default)}", highlight=False)
    table = Table("precision", "what it is", "gates", "here", box=SIMPLE)
    for row in _precisions(target):
        gates = "\n".join(f"{gate} {limit:g}" for gate, limit in row["gates"].items())
        for task, own in row["gates_by_task"].items():
            gates += "".join(f"\n{task}: {gate} {limit:g}" for gate, limit in own.items())
        table.add_row(row["precision"], escape(row["summary"]), gates, escape(row["unavailable"] or "yes"))
    console.print(table)


def _fields(target: Target) -> Mapping[str, Any]:
    return {} if target.options is None else target.options.model_fields


def _options(target: Target) -> list[dict[str, str]]:
    """A target's own options; `flag` is what changes the default."""
    return [
        {
            "flag": f"--no-{flag(target.name, name)[2:]}" if field.default is True else flag(target.name, name),
            "key": f"{target.name}: {{{name}: …}}",
            "default": shown_default(field),
            "help": field.description or "",
        }
        for name, field in _fields(target).items()
    ]


def _example(target: Target) -> str:
    """A command with the first option that says how a value of it looks."""
    words = ["exporter", "run", "-m", "MODEL", "-t", f"{target.name}:{target.default}"]
    shown = [(name, field.examples[0]) for name, field in _fields(target).items() if field.examples]
    for name, value in shown[:1]:
        words += [flag(target.name, name), str(value)]
    return join([*words, "-o", f"out/{target.name}"])
