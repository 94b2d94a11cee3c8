"""report.json and its forms as files of an output folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from exporter import store
from exporter.errors import JobError
from exporter.report.render import FORMS
from exporter.report.versions import READABLE, upgraded


def read_report(output: Path) -> dict[str, Any]:
    """report.json of an output folder, in the version of this exporter. Raises JobError."""
    try:
        report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobError(
            f"{output} holds no readable report.json ({error}); give the folder that 'exporter run' wrote"
        ) from error
    version = report.get("schema_version") if isinstance(report, dict) else None
    if version not in READABLE:
        raise JobError(
            f"{output}/report.json has schema_version {version}, and this exporter reads "
            f"{' and '.join(map(str, READABLE))}: read it with the exporter that wrote it, or run its job again here"
        )
    return upgraded(report)


def write_report(report: dict[str, Any], output: Path) -> None:
    """Writes report.json first: the figures are there whatever befalls a form; then report.html, .md and junit.xml."""
    for name, form in FORMS.items():
        store.write_text(output / name, form(report))
