"""What is told of targets and of this machine: `targets` and `doctor`."""

from __future__ import annotations

import shlex
from importlib import metadata

import pytest
from conftest import last_json

import exporter
from exporter.targets import known


def fake_install(site, name, version):
    """What metadata sees of an installed package."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_targets_lists_every_precision_with_its_gates(run_here):
    listed = last_json(run_here("targets", "--format", "json"))
    rows = {(row["target"], row["precision"]): row for row in listed["targets"]}
    assert {("torch", "fp32"), ("onnx", "fp32"), ("onnx", "int8-weight")} <= set(rows)
    assert all(row["summary"] for row in rows.values())
    assert rows["onnx", "fp32"]["gates"]["max_logit_error"] == 0.001
    assert rows["onnx", "fp32"]["unavailable"] is None
    assert "tiny" in listed["recipes"]


def test_one_target_has_its_precisions_gates_options_and_an_example(run_here, monkeypatch):
    listed = last_json(run_here("targets", "gguf", "--format", "json"))
    gates = {row["precision"]: row["gates"] for row in listed["precisions"]}
    assert gates["q4_k_m"]["max_ppl_ratio"] == 1.1
    assert [(one["flag"], one["key"], one["default"]) for one in listed["options"]] == [
        ("--gguf-imatrix", "gguf: {imatrix: …}", "auto"),
        ("--gguf-tensor", "gguf: {tensor: …}", ""),
        ("--gguf-split-max-size", "gguf: {split_max_size: …}", ""),
        ("--gguf-gpu-layers", "gguf: {gpu_layers: …}", ""),
    ]
    assert listed["example"] == "exporter run -m MODEL -t gguf:q4_k_m --gguf-tensor ffn_down=q6_k -o out/gguf"
    monkeypatch.setenv("COLUMNS", "60")
    human = run_here("targets", "tensorrt-rtx").stdout
    assert "--no-tensorrt-rtx-engine\n" in human
    assert "{compute_capability: …}" in human
    assert "no options of its own" in run_here("targets", "torch").stdout


@pytest.mark.parametrize("name", [name for name, target in known.BUILTIN.items() if target.options])
def test_the_example_of_a_target_is_a_job(run_here, name):
    """All of it is read; what stops it is the model, which is no one's."""
    example = last_json(run_here("targets", name, "--format", "json"))["example"]
    done = run_here(*shlex.split(example)[1:], "--dry-run")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "MODEL" in done.stderr


def test_a_misspelt_target_gets_the_nearest(run_here):
    done = run_here("targets", "guff")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: unknown target 'guff'; did you mean gguf?\n")


@pytest.mark.parametrize("command", [("targets",), ("targets", "tensorrt-rtx"), ("doctor",)], ids=" ".join)
def test_listings_fit_80_columns(run_here, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    done = run_here(*command)
    assert done.returncode == 0, done.stderr
    kept = ("trouble: ", "exporter run ", "pip ")  # lines to be copied
    long = [line for line in done.stdout.splitlines() if len(line) > 80 and not line.startswith(kept)]
    assert long == []


def test_doctor_tells_what_decides_a_result(run_cli, run_here):
    facts = last_json(run_cli("doctor", "--format", "json", env={"OMP_NUM_THREADS": "3"}))
    assert facts["cpu"]
    assert facts["threads"] == facts["cores"] > 0
    assert facts["memory_bytes"] >= facts["memory_available_bytes"] > 0
    assert facts["environment"]["OMP_NUM_THREADS"] == "3"
    assert facts["versions"]["exporter"] == exporter.__version__
    assert facts["versions"]["onnxruntime"] == metadata.version("onnxruntime")
    assert {"cpu_features", "gpu", "gpus", "cache", "cache_free_bytes", "troubles"} <= set(facts)
    assert "No known trouble." in run_here("doctor").stdout or facts["troubles"]


def test_doctor_knows_the_bad_pairs(run_cli, tmp_path):
    fake_install(tmp_path, "optimum_onnx", "0.1.0")
    fake_install(tmp_path, "transformers", "4.57.1")
    facts = last_json(run_cli("doctor", "--format", "json", env={"PYTHONPATH": str(tmp_path), "PYTORCH_JIT": "0"}))
    troubles = "\n".join(facts["troubles"])
    assert "pip uninstall optimum-onnx" in troubles
    assert "transformers 4.57.1 is not >=" in troubles
    assert "unset PYTORCH_JIT" in troubles
    human = run_cli("doctor", env={"PYTHONPATH": str(tmp_path)})
    assert "trouble: optimum-onnx pins" in human.stdout
    assert human.returncode == 0
