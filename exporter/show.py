"""What a person sees: progress on stderr while it works, results on stdout. Quiet where stderr is no terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.table import Table

from exporter import machine
from exporter.errors import ExporterError
from exporter.process import WorkerFailed
from exporter.types import Variant

_LOG_WIDTH = 110  # of what is written to a file or a pipe, where no terminal says its own


class Screen:
    """Progress and failures on stderr, while a job runs."""

    def __init__(self, verbose: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._verbose = verbose
        self._console = Console(stderr=True, width=None if sys.stderr.isatty() else _LOG_WIDTH)
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Progress(*columns, console=self._console, transient=True, disable=not sys.stderr.isatty())
        self._task = self._bars.add_task("checking", total=None)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()

    def progress(self, what: str, done: int, total: int) -> None:
        self._bars.update(self._task, description=what, completed=done, total=total or None)

    def failed(self, variant: Variant, error: ExporterError) -> None:
        """A failed artifact is told at once; a bug with its traceback."""
        self._console.print(f"failed: {variant}: {error}", markup=False, highlight=False)
        if isinstance(error, WorkerFailed) and error.trace:
            self._console.print(error.trace, markup=False, highlight=False)


def print_result(report: Mapping[str, Any], folder: Path, form: str) -> None:
    """The table and where the report is; or the report as one line of JSON."""
    from exporter.bench.report import print_table

    if form == "json":
        print(json.dumps(report, allow_nan=False))
        return
    console = _stdout()
    print_table(report, console)
    console.print(f"report: {folder / 'report.html'}", markup=False, highlight=False, soft_wrap=True)


def print_plan(described: Mapping[str, Any], form: str) -> None:
    if form == "json":
        print(json.dumps(described, default=str))
        return
    import yaml

    print(yaml.safe_dump(json.loads(json.dumps(described["job"], default=str)), sort_keys=False), end="")
    for step in described["steps"]:
        print(f"# {step}")


def print_damage(broken: Mapping[str, Sequence[str]], form: str) -> None:
    if form == "json":
        print(json.dumps(broken))
        return
    for name, lines in broken.items():
        print(f"{name}: {'; '.join(lines) or 'whole'}")


def print_targets(form: str) -> None:
    from exporter.recipes import RECIPES
    from exporter.targets import all_targets, unavailable

    rows = []
    for name, target in all_targets().items():
        for precision, about in target.precisions.items():
            limits = {gate: limit for gate, limit in vars(about.gates).items() if limit is not None}
            rows.append(
                {
                    "target": name, "precision": precision, "default": precision == target.default,
                    "summary": about.summary, "gates": limits, "unavailable": unavailable(Variant(name, precision)),
                }
            )
    if form == "json":
        recipes = {name: recipe.summary for name, recipe in RECIPES.items()}
        print(json.dumps({"targets": rows, "recipes": recipes}))
        return
    console = _stdout()
    for name, target in all_targets().items():
        meanings = "; ".join(f"{alias}: {' or '.join(sorted(set(of.values())))}" for alias, of in target.aliases.items())
        default = f"default: {target.default}" + (f" ({meanings})" if meanings else "")
        table = Table("precision", "what it is", "gates", "here", title=f"{name}: {target.summary}. {default}", title_justify="left")
        for row in rows:
            if row["target"] == name:
                gates = ", ".join(f"{gate} {limit:g}" for gate, limit in row["gates"].items())
                table.add_row(row["precision"], row["summary"], gates, row["unavailable"] or "yes")
        console.print(table)
    table = Table("recipe", "what it is", title="Models that need no download: -m NAME", title_justify="left")
    for name, recipe in RECIPES.items():
        table.add_row(name, recipe.summary)
    console.print(table)


def print_doctor(form: str) -> None:
    from exporter.job import usable_cores
    from exporter.store import cache_folder

    facts = machine.describe(usable_cores()) | {
        "cpu_features": machine.cpu_features(), "cache": str(cache_folder()), "troubles": machine.troubles(),
    }
    if form == "json":
        print(json.dumps(facts))
        return
    console = _stdout()
    table = Table(show_header=False)
    for name, value in facts.items():
        if name not in ("versions", "troubles"):
            table.add_row(name, " ".join(map(str, value)) if isinstance(value, list) else str(value))
    for package, version in facts["versions"].items():
        table.add_row(package, version)
    console.print(table)
    for line in facts["troubles"] or ["no known trouble"]:
        console.print(line, markup=False, highlight=False)


def _stdout() -> Console:
    return Console(width=None if sys.stdout.isatty() else _LOG_WIDTH)
