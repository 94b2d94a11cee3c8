"""`exporter bench` where there is what bench/measuring.txt lists and an ONNX Runtime, and neither torch nor onnx."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tomllib

import pytest
from alone import LIST, environment, listed
from conftest import ROOT
from packaging.requirements import Requirement

from exporter.onnxruntimes import CPU, GPU, needed

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, cache):
    """`alone(*words)`: that environment's Python, away from the checkout."""
    folder = tmp_path_factory.mktemp("alone")
    python = environment(folder / "venv", CPU)
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "EXPORTER_FORK"))}

    def run(*words):
        return subprocess.run([python, *map(str, words)], cwd=folder, env=outside, capture_output=True, text=True)

    return run


@pytest.fixture(scope="module")
def command(alone):
    """exporter's, there."""
    return lambda *words: alone("-m", "exporter", *words)


@pytest.fixture
def copied(measured, tmp_path):
    return shutil.copytree(measured, tmp_path / "out")


def test_the_list_has_the_bounds_of_the_project():
    own = {need.name: need.specifier for need in map(Requirement, PROJECT["dependencies"])}
    names = {need.name for need in listed()}
    assert names - set(own) == {"tokenizers"}  # transformers brings it to all others
    assert {need.name: need.specifier for need in listed() if need.name in own} == {
        name: own[name] for name in names & set(own)
    }
    assert not names & {CPU, GPU, "torch", "transformers", "onnx", "onnx-ir"}
    assert f"'{GPU}{needed(GPU)}'" in LIST.read_text(encoding="utf-8")


def test_bench_measures_every_onnx_artifact(command, copied):
    before = json.loads((copied / "report.json").read_text())
    done = command("bench", copied, "--threads", 1, "--format", "json")
    assert done.returncode == 0, done.stderr
    after = json.loads(done.stdout.splitlines()[-1])
    assert "torch" not in after["machine"]["versions"]
    for old, new in zip(before["results"], after["results"], strict=True):
        assert (new["target"], new["precision"]) == (old["target"], old["precision"])
        if new["target"] == "torch":
            assert new["status"] == "skipped"
            continue
        assert new["status"] == "ok", new["reason"]
        assert all(gate["passed"] for gate in new["gates"])
        assert new["quality"]["ppl_ratio"]["value"] == pytest.approx(old["quality"]["ppl_ratio"]["value"], abs=1e-6)
        assert new["samples"]["shown"] == old["samples"]["shown"]  # ids became text without transformers
        assert new["speed"]["decode_tokens_per_s"] > 0
    assert (copied / "report.html").stat().st_mtime_ns > (copied / "job.json").stat().st_mtime_ns


def test_verify_and_report(command, copied):
    whole = command("verify", copied)
    assert (whole.returncode, whole.stderr) == (0, "")
    assert "onnx-int4-weight: whole" in whole.stdout
    assert command("report", copied).returncode == 0
    model = copied / "onnx-fp32" / "onnx" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    damaged = command("verify", copied)
    assert damaged.returncode == 2
    assert "onnx-fp32: whole" not in damaged.stdout


def test_doctor_says_which_runtime_and_what_export_would_need(command):
    facts = json.loads(command("doctor", "--format", "json").stdout)
    assert facts["onnxruntime"]["package"] == CPU
    assert any(line.startswith("torch is not installed") for line in facts["troubles"])


def test_what_rounds_a_bfloat16_graph_for_the_cpu_says_what_it_needs(alone):
    imports = "from pathlib import Path; from exporter.targets.onnx.bf16 import open_stand_in"
    done = alone("-c", f"{imports}; open_stand_in(Path(), Path(), 1, True)")
    assert "MissingPackage: onnx:bf16 on the CPU needs onnx, onnx-ir; install with: pip install " in done.stderr


def test_what_cannot_be_exported_there_says_so(command, tmp_path):
    done = command("run", "-m", "tiny", "-t", "onnx:fp32", "-o", tmp_path / "out")
    assert done.returncode == 4
    assert done.stderr.startswith("error: torch:fp32 needs torch, transformers, optimum; install with: pip install ")


def test_a_checkpoint_that_lost_its_weights_is_not_timed_and_the_others_are(copied, run_cli, tmp_path, tiny):
    folder = shutil.copytree(tiny, tmp_path / "model", ignore=shutil.ignore_patterns("adapter", "*.safetensors"))
    manifest = copied / "reference" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"checkpoint": str(folder)}))
    done = run_cli("bench", copied, "--threads", 1, "--format", "json")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    reference, *others = json.loads(done.stdout.splitlines()[-1])["results"]
    assert reference["status"] == "skipped"
    assert "lacks model.safetensors" in reference["reason"]
    assert reference["reason"].endswith("its stored answers are the reference")
    assert {row["status"] for row in others} == {"ok"}
