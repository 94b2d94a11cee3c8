"""The report's files in an output folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from exporter import store
from exporter.errors import JobError
from exporter.report.render import render


def read_report(output: Path) -> dict[str, Any]:
    """report.json of an output folder. Raises JobError."""
    try:
        report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobError(
            f"{output} holds no readable report.json ({error}); give the folder that 'exporter run' wrote"
        ) from error
    if not isinstance(report, dict) or report.get("schema_version") != 1:
        raise JobError(f"{output}/report.json has another schema_version than 1; it is from another exporter")
    return report


def write_report(report: dict[str, Any], output: Path) -> None:
    """Writes report.json, report.html, report.md and junit.xml; all are rendered before the first is written."""
    for name, text in render(report).items():
        store.write_text(output / name, text)
