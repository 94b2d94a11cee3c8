"""A target from another package, by the entry point group exporter.targets: a good one, and broken ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.report.table import value

ROOT = Path(__file__).resolve().parent.parent
LIGHT = ("--eval-tokens", 256, "--threads", 1, "--repeats", 1)


def install(package, site):
    """Builds a package's wheel with the backend that is installed here, and unpacks it into a folder: no network."""
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet")
    subprocess.run([sys.executable, "-m", "pip", "install", *offline, "--target", site, package], check=True)


def fake_install(site, name, module, *points):
    """What pip leaves of a package `name`: its metadata with entry points, and a module of this text."""
    (site / f"{name}.py").write_text(module)
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(["[exporter.targets]", *points, ""]))


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    """The environment of a machine where exporter-npz is installed."""
    site = tmp_path_factory.mktemp("site")
    install(ROOT / "tests" / "packages" / "exporter-npz", site)
    return {"PYTHONPATH": str(site)}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """The environment of a machine with four packages whose targets cannot be used."""
    site = tmp_path_factory.mktemp("broken")
    fake_install(site, "raises", "raise RuntimeError('no driver')", "rotten = raises:TARGET")
    fake_install(site, "imports", "import a_module_that_is_not_there", "lacking = imports:TARGET")
    fake_install(site, "other", "TARGET = 'a string'", "wordy = other:TARGET")
    fake_install(site, "clash", "from exporter.targets.onnx.target import ONNX as TARGET", "onnx = clash:TARGET")
    return {"PYTHONPATH": str(site)}


@pytest.fixture(scope="module")
def strange(tmp_path_factory):
    """The environment of a machine with packages whose options cannot be taken."""
    site = tmp_path_factory.mktemp("strange")
    brings = (
        "from dataclasses import replace\nfrom pydantic import BaseModel\n"
        "from exporter.targets.torch.target import TORCH\n"
        "class Options(BaseModel):\n    {field}\nTARGET = replace(TORCH, name={name!r}, options={options})\n"
    )
    for name, field, options in (
        ("named", "old: str = 'x'", "('old',)"),
        ("demanding", "size: int", "Options"),
        ("eval", "text: str = 'x'", "Options"),
        ("policy", "level: int = 3", "Options"),
        ("fine", "level: int = 3", "Options"),
    ):
        text = brings.format(name=name, field=field, options=options)
        fake_install(site, f"brings_{name}", text, f"{name} = brings_{name}:TARGET")
    return {"PYTHONPATH": str(site)}


@pytest.fixture(scope="module")
def out(run_cli, npz, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    done = run_cli("run", "-m", "models/tiny", "--target", "npz", *LIGHT, "-o", folder, env=npz)
    assert done.returncode == 0, done.stderr
    return folder, json.loads((folder / "report.json").read_text())


def row_of(report, target):
    return next(row for row in report["results"] if row["target"] == target)


def test_a_run_proves_it(out):
    folder, report = out
    row = row_of(report, "npz")
    assert (row["precision"], row["status"], report["passed"]) == ("fp16", "ok", True)
    assert value(row, "ppl_ratio") == pytest.approx(1, abs=1e-3)
    assert 0 < value(row, "kl") < 1e-5
    assert value(row, "top1") > 0.99
    assert 0 <= value(row, "cache_kl") < 1e-6
    assert {gate["name"] for gate in row["gates"]} == {"max_ppl_ratio", "max_cache_kl"}
    assert row["artifact"]["bytes"] == (folder / "npz-fp16" / "model.npz").stat().st_size
    assert row["speed"]["decode_tokens_per_s"] > 0
    assert row["artifact"]["size_ratio"] == pytest.approx(0.5, abs=0.01)


def test_its_artifact_has_the_page_that_all_have(out):
    page = (out[0] / "npz-fp16" / "README.md").read_text()
    assert page.startswith("---\nlicense: ")
    assert "\npython -m zipfile --list npz-fp16/model.npz\n" in page
    assert "| PPL ratio (± se) | " in page


def test_the_report_has_the_line_that_runs_it(out):
    folder, report = out
    assert [winner["what"] for winner in report["winners"]] == ["smallest", "fastest decode", "fastest prefill"]
    for winner in report["winners"]:
        assert (winner["variant"], winner["folder"]) == ("npz:fp16", "npz-fp16")
        assert str(folder) in winner["run"]
    mine = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", winner["run"]], env=mine, capture_output=True, text=True, check=True)
    assert "model.norm.weight.npy" in done.stdout


def test_its_version_is_recorded_so_that_an_upgrade_exports_again(out):
    manifest = json.loads((out[0] / "npz-fp16" / "manifest.json").read_text())
    assert manifest["versions"]["exporter-npz"] == "0.1.0"


def test_a_bench_that_can_measure_no_artifact_is_an_error_and_keeps_the_report(run_here, out):
    """Where the target is not installed: the reference alone says nothing of what is shipped."""
    before = (out[0] / "report.json").read_bytes()
    done = run_here("bench", out[0], "--format", "json")
    assert (done.returncode, done.stdout) == (4, "")
    assert "can be measured here: npz:fp16: unknown target 'npz'; there are: coreml, gguf" in done.stderr
    assert (out[0] / "report.json").read_bytes() == before


def test_it_is_listed(run_cli, npz):
    listed = json.loads(run_cli("targets", "--format", "json", env=npz).stdout)
    mine = [row for row in listed["targets"] if row["target"] == "npz"]
    assert [(row["precision"], row["default"], row["unavailable"]) for row in mine] == [("fp16", True, None)]
    assert listed["broken"] == {}
    assert "an example of a third party's target" in run_cli("targets", env=npz).stdout


def test_its_misspelling_gets_the_nearest_names(run_cli, npz, tmp_path):
    done = run_cli("run", "-m", "models/tiny", "--target", "nzp", "-o", tmp_path / "out", env=npz)
    assert done.returncode == 2
    assert "unknown target 'nzp'; did you mean npz?" in done.stderr
    assert not (tmp_path / "out").exists()


def test_its_own_refusal_is_told_before_any_work(run_cli, npz, tmp_path):
    done = run_cli("run", "-m", "models/tiny", "--target", "npz:int8", "-o", tmp_path / "out", env=npz)
    assert done.returncode == 2
    assert "unknown precision of npz 'int8'" in done.stderr


def test_its_options_are_flags_a_section_and_in_the_schema(run_cli, run_here, npz, tmp_path):
    shown = run_cli("run", "--help", env=npz).stdout
    heading = "npz (NumPy's .npz, an example of a third party's target):"
    assert "--npz-compress" in shown.partition(heading)[2].partition("Running:")[0]
    schema = json.loads(run_cli("schema", env=npz).stdout)["properties"]["npz"]
    assert (schema["type"], schema["properties"]["compress"]["default"]) == ("object", False)
    assert "npz" not in json.loads(run_here("schema").stdout)["properties"]
    told = json.loads(run_cli("targets", "npz", "--format", "json", env=npz).stdout)
    assert [(one["flag"], one["key"], one["default"]) for one in told["options"]] == [
        ("--npz-compress", "npz: {compress: …}", "off")
    ]
    (tmp_path / "job.yaml").write_text("npz: {compres: true}")
    flags = ("-m", "models/tiny", "-t", "npz", "--config", tmp_path / "job.yaml", "-o", tmp_path / "out")
    done = run_cli("run", *flags, env=npz)
    assert done.returncode == 2
    assert "unknown option of npz 'compres'; did you mean compress?" in done.stderr
    assert "unknown section 'npz'" in run_here("run", *flags[:2], *flags[4:]).stderr


def test_its_option_changes_what_it_writes(run_cli, npz, out, tmp_path):
    """As a flag and as a section it is the same job, whose artifact is reused."""
    (tmp_path / "job.yaml").write_text("npz: {compress: true}")
    manifest, written = tmp_path / "out" / "npz-fp16" / "manifest.json", []
    for asked in (("--npz-compress",), ("--config", tmp_path / "job.yaml")):
        command = ("run", "-m", "models/tiny", "-t", "npz", *asked, "--no-speed", *LIGHT, "-o", tmp_path / "out")
        done = run_cli(*command, env=npz)
        assert done.returncode == 0, done.stderr
        written.append(manifest.stat().st_mtime_ns)
    assert written[0] == written[1]
    row = row_of(json.loads((tmp_path / "out" / "report.json").read_text()), "npz")
    assert row["status"] == "ok"
    assert row["artifact"]["bytes"] < 0.99 * row_of(out[1], "npz")["artifact"]["bytes"]


def test_options_that_cannot_be_taken_break_their_target_only(run_cli, strange, tmp_path):
    listed = json.loads(run_cli("targets", "--format", "json", env=strange).stdout)
    assert "are ('old',), not a subclass of pydantic's BaseModel" in listed["broken"]["named"]
    assert "have no defaults that hold: 1 validation error" in listed["broken"]["demanding"]
    assert "would take the place of 'eval_text', a key of every job" in listed["broken"]["eval"]
    assert "would take the place of 'policy', a key of every job" in listed["broken"]["policy"]
    assert listed["broken"].keys() == {"named", "demanding", "eval", "policy"}
    shown = run_cli("run", "--help", env=strange)
    assert shown.returncode == 0
    assert "--fine-level INTEGER" in shown.stdout
    assert "--named-old" not in shown.stdout
    flags = ("-m", "tiny", "-t", "torch:bf16", "--fine-level", 5, "--dry-run", "-o", tmp_path / "out")
    done = run_cli("run", *flags, env=strange)
    assert done.returncode == 0, done.stderr
    assert "level: 5" in done.stdout


def test_broken_ones_are_listed_with_their_reasons(run_cli, broken):
    listed = json.loads(run_cli("targets", "--format", "json", env=broken).stdout)["broken"]
    assert set(listed) == {"rotten", "lacking", "wordy", "onnx"}
    assert "RuntimeError: no driver" in listed["rotten"]
    assert "a_module_that_is_not_there" in listed["lacking"]
    assert "other:TARGET is not an exporter.types.Target named 'wordy'" in listed["wordy"]
    assert "built-in name" in listed["onnx"]
    assert all("pip uninstall" in reason for reason in listed.values())
    human = run_cli("targets", env=broken).stdout
    assert "cannot be used" in human
    assert "no driver" in human
    troubles = json.loads(run_cli("doctor", "--format", "json", env=broken).stdout)["troubles"]
    assert sum("cannot be used" in line for line in troubles) == 4


def test_a_broken_one_that_was_named_stops_the_run(run_cli, broken, tmp_path):
    done = run_cli("run", "-m", "models/tiny", "--target", "rotten", "-o", tmp_path / "out", env=broken)
    assert done.returncode == 4
    assert "the target rotten cannot be used" in done.stderr
    assert "no driver" in done.stderr


def test_broken_ones_do_not_trouble_the_others(run_cli, broken, tmp_path):
    done = run_cli(
        "run",
        "-m",
        "models/tiny",
        "--target",
        "all",
        "--dry-run",
        "--format",
        "json",
        "-o",
        tmp_path / "out",
        env=broken,
    )
    assert done.returncode == 0, done.stderr
    planned = json.loads(done.stdout.splitlines()[-1])
    assert any(target.startswith("onnx:") for target in planned["job"]["target"])
    skipped = [step for step in planned["steps"] if step.startswith("skip ")]
    assert {step.split(":")[0].removeprefix("skip ") for step in skipped} >= {"rotten", "lacking", "wordy"}


def test_two_packages_with_one_name_are_both_refused(run_cli, tmp_path):
    for name in ("first", "second"):
        fake_install(tmp_path, name, "TARGET = None", f"twice = {name}:TARGET")
    listed = json.loads(run_cli("targets", "--format", "json", env={"PYTHONPATH": str(tmp_path)}).stdout)
    assert "uninstall all but one" in listed["broken"]["twice"]


def test_the_package_is_small_enough_to_be_an_example():
    lines = Path(ROOT / "tests/packages/exporter-npz/exporter_npz.py").read_text().splitlines()
    assert len(lines) < 110
