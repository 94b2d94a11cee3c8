"""The last step of a run: every row judged by its gates, the best of them named, the report and READMEs written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from exporter import __version__
from exporter.errors import EXIT_BUILD, EXIT_GATE, EXIT_OK
from exporter.form import FORMS
from exporter.job import Job
from exporter.measure.gates import judge, unjudged
from exporter.pipeline.readme import line_of, write_readmes
from exporter.report.document import VERSION
from exporter.report.files import write_report
from exporter.report.result import Result
from exporter.report.winners import winners
from exporter.targets import known
from exporter.types import Gates

_TOLD = 3  # figures that are no numbers, in a row's reason


def finish(job: Job, described: dict[str, Any], rows: Sequence[Result], output: Path) -> dict[str, Any]:
    """Judges the rows by their gates, writes and returns the report, and says in each artifact what was found."""
    asked = frozenset(name for name, limit in asdict(job.gates(Gates())).items() if limit is not None)
    for row in rows:
        if row.status == "ok" and row.variant != known.REFERENCE:
            task = described["model"]["task"]
            limits = job.gates(known.get(row.target).precisions[row.precision].limits(task))
            row.gates = judge(limits, row, asked, described["evaluation"]["tokens_scored"], FORMS[task].unit)
            row.gates += filter(None, [unjudged(row.gates, row)])
            meaningless = dict.fromkeys(row.quality[name].detail for name in ("top1", "pearson", "spearman"))
            row.reason = "; ".join(filter(None, (row.reason, *meaningless))) or None
        _refuse_odd(row)
        speed = row.speed
        rates = ("prefill_tokens_per_s", "pictures_per_s", "times_real_time", "decode_tokens_per_s")
        if row.status == "ok" and all(speed[name] is None for name in rates):
            lack = f"latency: {speed['untimed']}" if speed["untimed"] else "speed and memory: not measured (--no-speed)"
            row.reason = "; ".join(filter(None, (row.reason, lack)))
        elif row.status == "ok" and speed["decode_tokens_per_s"] is None and row.quality["ppl"].value is not None:
            row.reason = "; ".join(
                filter(None, (row.reason, "decode: the model's positions are too few to measure it"))
            )
    status = EXIT_OK if all(row.passed for row in rows) else EXIT_GATE
    if any(row.status == "failed" for row in rows):
        status = EXIT_BUILD
    report: dict[str, Any] = {
        "schema_version": VERSION,
        "exporter_version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **described,
        "results": [row.to_json() for row in rows],
        "winners": [],
        "passed": status == EXIT_OK,
        "exit_status": status,
    }
    targets = {str(row.variant): row.target for row in rows}
    for winner in winners(report):
        # As the user named the folder: the line is for where the command was typed.
        folder = job.output.expanduser() / winner["folder"]
        line = line_of(known.get(targets[winner["variant"]]), folder, report["model"]["task"])
        report["winners"].append(winner | {"run": line})
    write_report(report, output)
    write_readmes(report, output)
    return report


def _refuse_odd(row: Result) -> None:
    """A figure that is no number fails its row, whether a gate is on it or not."""
    if not (odd := row.odd):
        return
    told = ", ".join(odd[:_TOLD]) + f" and {len(odd) - _TOLD} more" * (len(odd) > _TOLD)
    row.reason = "; ".join(filter(None, (row.reason, told)))
    if row.status == "ok" and all(gate.passed or gate.value is not None for gate in row.gates):
        row.status = "failed"  # where no gate told of it
