"""The JSON Schemas of what a person writes and what a program reads."""

from __future__ import annotations

import json

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema_text(what: str) -> str:
    """Of the job file, "job", or of report.json, "report"."""
    if what == "job":
        from exporter.pipeline.sections import job_schema

        described = job_schema()
    else:
        from exporter.report.document import Document

        described = Document.model_json_schema(mode="serialization")  # keys are always there
    return json.dumps({"$schema": DIALECT, **described}, indent=2)
