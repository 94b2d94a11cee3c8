"""What an output folder may hold before a job writes into it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.errors import JobError
from exporter.job import Job
from exporter.pipeline.sections import Sections
from exporter.store import MANIFEST, writable
from exporter.types import Gates


def continues(now: Mapping[str, Any], earlier: Mapping[str, Any]) -> bool:
    """Whether nothing of an earlier job is lost with this one: only gates differ, or something came. Both: identities.

    What can come: targets, and forms of the perplexity.
    """
    more = ("target", "perplexity")
    free = {*Gates.__dataclass_fields__, *more}
    rest, before = ({key: it for key, it in job.items() if key not in free} for job in (now, earlier))
    return rest == before and all(set(earlier.get(key, ())) <= set(now[key]) for key in more)


def refuse_other_results(output: Path, job: Job, sections: Sections) -> None:
    """An output folder must be new, empty, or hold earlier results that this job goes on from; --force takes any of
    exporter's."""
    writable(output)
    # logs/ and job.json alone are what a run leaves that was stopped before its first result.
    nothing = {"logs", "job.json"}
    present = [path for path in output.glob("*") if not path.name.startswith(".") and path.name not in nothing]
    if not present:
        return
    report = output / "report.json"
    ours = report.is_file() or any((path / MANIFEST).is_file() for path in present) or (output / "job.json").is_file()
    if not ours:
        raise JobError(f"{output} holds other files ({present[0].name}); choose a new folder with -o")
    record = output / "job.json"
    try:
        same = continues(sections.identity(job), json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError):
        same = False
    if not same and not job.force:
        raise JobError(
            f"{output} holds another job's results; choose another folder with -o, or replace them with --force"
        )
