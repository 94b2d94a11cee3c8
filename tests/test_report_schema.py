"""report.json's shape: the schema that exporter prints, docs/report.md, and the rows that are made."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from report_schema import complaints, report_schema
from reports import encoder, generation

from exporter.measure.gates import judge
from exporter.report.document import Document
from exporter.report.render import FORMS
from exporter.report.result import Figure, Result
from exporter.types import Gates

pytestmark = pytest.mark.quick

DOCS = (Path(__file__).parent.parent / "docs" / "report.md").read_text(encoding="utf-8")
OPEN = {"artifact", "quality", "generation", "speed", "memory", "build"}


def whole(report: dict[str, Any]) -> dict[str, Any]:
    """One of reports.py's with what only a run knows."""
    report["job"] = {"model": "tiny"}
    report["evaluation"] |= {"max_length": 2048, "window": 512, "stride": 256, "kl": "a lower bound"}
    report["evaluation"] |= {"perplexity": None, "pooling": None, "data": None}
    return report


def test_the_command_prints_it(run_here):
    printed = json.loads(run_here("schema", "report").stdout)
    assert printed == {"$schema": "https://json-schema.org/draft/2020-12/schema", **report_schema()}
    assert run_here("schema", "job").stdout == run_here("schema").stdout
    wrong = run_here("schema", "rows")
    assert wrong.returncode == 2
    assert "'rows' is not one of 'job', 'report'" in wrong.stderr


def test_every_key_says_what_it_is():
    for name, part in {"Document": report_schema(), **report_schema()["$defs"]}.items():
        for key, about in part["properties"].items():
            assert about.get("description") or "$ref" in about, f"{name}.{key}"
        assert part["required"] == list(part["properties"]), f"{name}: a key that may be missing"


@pytest.mark.parametrize("make", [generation, encoder])
def test_a_task_and_a_target_add_figures(make):
    report = whole(make())
    assert list(complaints(report)) == []
    row = Result("onnx", "fp32")
    row.add({
        "quality": {"word_error_rate": {"value": 0.07, "se": 0.002}},
        "artifact": {"adapters": 2}, "speed": {"real_time_factor": 0.1}, "memory": {"arena_bytes": 9},
        "build": {"compiler": "one"},
    })  # fmt: skip
    report["results"][1] = row.to_json()
    assert report["results"][1]["quality"]["word_error_rate"] == {"value": 0.07, "se": 0.002, "detail": None}
    assert list(complaints(report)) == []
    Document.model_validate(report)
    assert all(form(report) for form in FORMS.values())
    assert set(FORMS) == {"report.json", "report.html", "report.md", "junit.xml"}


@pytest.mark.parametrize(
    ("place", "key", "value", "said"),
    [
        ([], "extra", 1, "report: extra is not known"),
        ([], "schema_version", 1, "report.schema_version: 1 is another value"),
        (["results", 0], "ppl", 1.0, "report.results[0]: ppl is not known"),
        (["results", 0], "status", "fine", "report.results[0].status: 'fine' is another value"),
        (["results", 0, "quality"], "ppl_se", 0.1, "report.results[0].quality.ppl_se: 0.1 is no object"),
        (["results", 0, "quality", "kl"], "error", 0.1, "report.results[0].quality.kl: error is not known"),
        (["results", 0, "artifact"], "bytes", "5 MB", "report.results[0].artifact.bytes: '5 MB' is none of what"),
        (["winners", 0], "folder", None, "report.winners[0].folder: None is no string"),
        (["machine"], "cores", None, "report.machine.cores: None is no integer"),
    ],
)
def test_anything_else_is_refused(place, key, value, said):
    report = whole(generation())
    part: Any = report
    for step in place:
        part = part[step]
    part[key] = value
    [line] = complaints(report)
    assert line.startswith(said)
    with pytest.raises(ValueError, match=key):
        Document.model_validate(report)


def test_a_key_that_is_missing_is_told():
    report = whole(generation())
    del report["results"][0]["memory"]["peak_rss_bytes"]
    assert list(complaints(report)) == ["report.results[0].memory: peak_rss_bytes is missing"]


def test_what_was_not_measured_is_null_and_its_key_is_there():
    row = Result("onnx", "fp32").to_json()
    for group in OPEN - {"quality"}:
        assert set(row[group].values()) == {None}
    assert all(figure == {"value": None, "se": None, "detail": None} for figure in row["quality"].values())
    assert {group: set(row[group]) for group in OPEN} == {group: keys(group.title()) for group in OPEN}


def test_a_row_shares_nothing_with_another():
    first, second = Result("onnx", "fp32"), Result("onnx", "fp16")
    first.quality["kl"], first.artifact["bytes"] = Figure(1.0), 1
    assert (second.quality["kl"], second.artifact["bytes"]) == (Figure(), None)


def test_a_gate_is_judged_on_an_added_figure_as_on_any_other():
    row = Result("onnx", "fp32", quality={"kl": Figure(0.1, 0.04)}, speed={"real_time_factor": 0.1})
    [gate] = judge(Gates(max_kl=0.15), row, frozenset(), 100)
    assert not gate.passed
    assert row.figure("real_time_factor") == Figure(0.1)
    assert row.figure("bytes") == row.figure("anything") == Figure()


def keys(part: str) -> set[str]:
    return set((report_schema() if part == "Document" else report_schema()["$defs"][part])["properties"])


def documented(section: str) -> set[str]:
    """The keys in the first column of a section's table."""
    [text] = re.findall(rf"^#+ {section}.*?\n(.*?)(?=^#|\Z)", DOCS, re.M | re.S)
    cells = re.findall(r"^\| (`.*?) \|", text, re.M)
    names = re.findall(r"`([^`]+)`", " ".join(cells))
    assert len(set(names)) == len(names)
    return set(names)


@pytest.mark.parametrize(
    ("section", "part"),
    [
        ("The report", "Document"), ("`model`", "Model"), ("`evaluation`", "Evaluation"), ("`machine`", "Machine"),
        ("A row of `results`", "Row"), ("`artifact`", "Artifact"), ("`quality`", "Quality"),
        ("`generation`", "Generation"), ("`speed`", "Speed"), ("`memory`", "Memory"), ("`build`", "Build"),
        ("`gates`", "Gate"), ("`winners`", "Winner"),
    ],
)  # fmt: skip
def test_the_documentation_has_the_same_keys(section, part):
    assert documented(section) == keys(part)


def test_the_documentation_leaves_no_part_out():
    told = {
        "Document",
        "Model",
        "Evaluation",
        "Machine",
        "Row",
        "Winner",
        "Gate",
        "Figure",
        *(group.title() for group in OPEN),
    }
    assert {"Document", *report_schema()["$defs"]} == told
    assert all(f'"{key}"' in DOCS for key in keys("Figure"))
