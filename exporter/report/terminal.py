"""The report on a terminal: its table, a line for what failed, and which artifact to take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from exporter.report import table, timing
from exporter.report.columns import Column
from exporter.report.columns import columns as columns_of
from exporter.report.winners import nothing_passed, told
from exporter.report.zeros import zeros_lines

Report = Mapping[str, Any]
_REASON = 300  # characters of a reason

_COLOURS = {"passed": "green", "gate failed": "red", "failed": "red", "skipped": "yellow"}


def print_table(report: Report, console: Console) -> None:
    """The table for a terminal, and below it a line for everything that failed or was skipped.

    On a narrow terminal columns are left out, the least important first, and a line says which.
    """
    report = table.clean(report)
    columns = every = columns_of(report)
    wide = console.options.update(width=1000)
    for gap, least in ((1, ""), (0, ""), (0, "Greedy"), (0, "RSS"), (0, "Prefill"), (0, "KL"), (0, "Top-1")):
        columns = [column for column in columns if column.title != least]
        view = _terminal_table(report, columns, gap)
        if view.__rich_measure__(console, wide).maximum <= console.width:
            break
    lines: list[Text] = []
    for row in report["results"]:
        what = [table.failure(gate) for gate in row["gates"] if not gate["passed"]]
        if row["status"] != "ok":
            what.append(f"{row['status']}: {row['reason']}")
        elif row["speed"]["untimed"]:
            what.append(f"quality: {row['artifact']['engine']}; latency: {row['speed']['untimed']}")
        what += ["; ".join(said)] if (said := list(zeros_lines(row))) else []
        lines += [Text.assemble((table.name(row), "bold"), "  ", table.clip(text, _REASON)) for text in what]
    lines += [Text(note) for note in (*timing.notes(report), *filter(None, [table.short_text(report)]))]
    dropped = [column.title for column in every if column not in columns]
    if dropped:
        lines.append(Text(f"left out for want of width: {', '.join(dropped)}", style="dim"))
    # Texts, not strings: rich would take the brackets in a name for its markup.
    console.print(view, *lines, sep="\n")


def print_winners(report: Report, folder: Path, console: Console) -> None:
    """Which artifact to take, where it is below the report's `folder`, and the line that runs it, to be copied."""
    report = table.clean(report)
    for one in told(report):
        lines = [*one.facts, f"folder: {table.clean(str(folder / one.folder))}"]
        lines += [f"run it: {one.run}"] if one.run else []
        console.print(Text.assemble(f"{one.title}: ", (one.variant, "bold")), soft_wrap=True)
        console.print(*(Text(f"  {line}") for line in lines), sep="\n", soft_wrap=True)
    if (nothing := nothing_passed(report)) is not None:
        console.print(Text(nothing))


def _terminal_table(report: Report, columns: list[Column], gap: int) -> Table:
    view = Table(box=SIMPLE_HEAD, padding=(0, gap, 0, 0), pad_edge=False, show_edge=False)
    view.add_column("\ntarget", overflow="fold", max_width=24)
    view.add_column("status\ngates", no_wrap=True)
    for column in columns:
        view.add_column(Text(f"{column.title}\n{column.unit}"), justify="right", no_wrap=True)
    for row in report["results"]:
        verdict, gates = table.verdict(report, row), row["gates"]
        kept = f" {sum(gate['passed'] for gate in gates)}/{len(gates)}" if gates else ""
        status = Text(f"{'failed' if verdict == 'gate failed' else verdict}{kept}", style=_COLOURS.get(verdict, ""))
        view.add_row(Text(table.name(row)), status, *(Text(column.shown(report, row) or "–") for column in columns))
    return view
