"""A report of version 1: the real one in version1/, as the last exporter that wrote such rows left it."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from report_schema import complaints

from exporter import Job, run
from exporter.errors import JobError
from exporter.pipeline.sections import read_sections
from exporter.report.files import read_report
from exporter.report.table import value
from exporter.report.versions import upgraded

pytestmark = pytest.mark.quick

OLD = Path(__file__).parent / "version1"
MAPPING = (
    (Path(__file__).parent.parent / "docs" / "report.md").read_text(encoding="utf-8").partition("# What changed")[2]
)


@pytest.fixture
def old() -> dict[str, Any]:
    report: dict[str, Any] = json.loads((OLD / "report.json").read_text())
    assert report["schema_version"] == 1
    return report


def places() -> dict[str, list[str]]:
    """Where each key of a row is now, as docs/report.md has it."""
    found = {}
    for names, place in re.findall(r"^\| (`.+`) \| (.+) \|$", MAPPING, re.M):
        for name in re.findall(r"`(\w+)`", names):
            found[name] = [name] if place == "the same" else place.strip("`").replace("…", name).split(".")
    return found


def test_every_figure_is_in_its_group(old):
    """As docs/report.md says, on the real rows; what is null in all of them gets a value, so that none is missed."""
    for number, row in enumerate(old["results"]):
        row.update({key: f"{key} of row {number}" for key, found in row.items() if found is None})
    old["winners"] = []  # words are no figures to choose by
    before = copy.deepcopy(old)
    new = upgraded(old)
    assert old == before, "a pure function"
    assert set(places()) == set(old["results"][0])
    for mine, row in zip(old["results"], new["results"], strict=True):
        for key, steps in places().items():
            found: Any = row
            for step in steps:
                found = found[step]
            assert found == mine[key], key
    assert {key for key in old if old[key] != new[key]} == {"schema_version", "job", "model", "evaluation", "results"}
    assert new["model"] == {**old["model"], "prune": None, "distill": None}
    assert new["evaluation"] == {**old["evaluation"], "tokens": None, "perplexity": None, "pooling": None, "data": None}


def test_who_won_is_found_in_its_rows(old):
    """Also of a version 2 that did not have them yet. No line: nobody who knows the target wrote the report."""
    winner = {"variant": "tensorrt-rtx:fp16", "folder": "tensorrt-rtx-fp16", "run": None}
    new = upgraded(old)
    assert new["winners"] == [{"what": "smallest", **winner}]  # the others failed a gate, and it was not timed
    del new["winners"]
    assert upgraded(new)["winners"] == [{"what": "smallest", **winner}]
    mine = [{"what": "smallest", **winner, "run": "a line"}]
    assert upgraded({**new, "winners": mine})["winners"] == mine


def test_its_job_is_one_of_today(old):
    """The options of targets and stages were keys of every job."""
    new = upgraded({**old, "job": old["job"] | {"imatrix": "off", "qat": "steps=7, data=a, b.txt", "engine": False}})
    job = Job.model_validate(new["job"])
    sections = read_sections(job)
    assert sections.targets["gguf"].imatrix == "off"
    assert (sections.qat.steps, sections.qat.data) == (7, Path("a, b.txt"))
    assert sections.targets["tensorrt"].engine is sections.targets["tensorrt-rtx"].engine is False
    assert (job.model, job.target) == (old["job"]["model"], tuple(old["job"]["target"]))


def test_it_is_as_the_schema_says(old):
    new = upgraded(old)
    assert list(complaints(new)) == []
    assert upgraded(new) == new
    for key in ("device_memory_bytes", "untimed", "build", "tokenizer_errors", "cache_kl"):  # rows had fewer at first
        del old["results"][1][key]
    for key in ("merge", "qat"):
        del old["model"][key]
    assert list(complaints(upgraded(old))) == []


def test_the_same_markdown_comes_of_it(run_here, tmp_path):
    folder = shutil.copytree(OLD, tmp_path / "out")
    (folder / "report.md").unlink()
    done = run_here("report", folder)
    assert done.returncode == 0, done.stderr
    before, which, after = re.split(
        r"(?<=\n)(\*\*Which to take\*\*\n.*?)(?=\*\*)", (folder / "report.md").read_text(), flags=re.S
    )
    assert before + after == (OLD / "report.md").read_text()  # whose exporter named none
    assert "Smallest within the gates: `tensorrt-rtx:fp16`, 7.5 MB, 0.82 × the reference's;" in which
    assert json.loads((folder / "report.json").read_text())["schema_version"] == 2


def test_bench_measures_what_it_tells_of(old, run_here, tmp_path):
    """Beside it artifacts and a reference as they are written today; only the report is old."""
    out = tmp_path / "out"
    made = run(Job(model="tiny", target="onnx:int8-weight", output=out, eval_tokens=256, speed=False, threads=1))
    old["results"] = old["results"][:2]
    (out / "report.json").write_text(json.dumps(old))
    done = run_here("bench", out, "--threads", 1)
    assert done.returncode == 3, done.stderr  # its job had a gate that so few tokens cannot pass
    again = read_report(out)
    assert list(complaints(again)) == []
    row, before = again["results"][1], old["results"][1]
    assert row["artifact"]["bytes"] == before["bytes"]
    assert row["build"]["export_s"] == before["export_s"]
    assert value(row, "kl") == value(made["results"][1], "kl")
    assert row["speed"]["decode_tokens_per_s"] > 0
    assert row["artifact"]["engine"].startswith("onnxruntime ")


@pytest.mark.parametrize("version", [0, 3, None, "2"])
def test_another_version_is_refused_in_a_line(old, tmp_path, version):
    (tmp_path / "report.json").write_text(json.dumps(old | {"schema_version": version}))
    with pytest.raises(JobError) as refusal:
        read_report(tmp_path)
    assert f"has schema_version {version}, and this exporter reads 1 and 2" in str(refusal.value)
    assert "\n" not in str(refusal.value)
