"""Pruning in whole runs: what is exported is what was pruned, and what cannot be is said before any work."""

from __future__ import annotations

import json

import pytest
from conftest import SMALL, last_json

from exporter.checkpoint.linear import linear_layers
from exporter.checkpoint.model import load_model

CALIBRATED = ("--calib-tokens", 4096)
LOOSE = ("--max-ppl-ratio", 1000, "--max-kl", 100)


@pytest.fixture
def compressed(run_here, tmp_path):
    """compressed(*prunings): the folder that `exporter compress` writes, and its record."""

    def make(*prunings):
        folder = tmp_path / "compressed"
        asked = [word for one in prunings for word in ("--prune", one)]
        done = run_here("compress", "-m", "tiny", *asked, *CALIBRATED, "--format", "json", "-o", folder)
        return folder, last_json(done)

    return make


def test_a_smaller_model_is_an_ordinary_checkpoint(compressed, run_here, tiny, tmp_path):
    """Its artifact agrees with itself in torch as any other's does: the gates of fp32 hold."""
    folder, record = compressed("width:0.25", "depth:1", "magnitude:0.2")
    before, after = record["prune"]["parameters_before"], record["prune"]["parameters_after"]
    assert after < 0.9 * before
    config = json.loads((folder / "config.json").read_text())
    dense = load_model(tiny, "text-generation", "float32").config
    assert config["num_hidden_layers"] == dense.num_hidden_layers - 1
    assert config["intermediate_size"] < dense.intermediate_size
    assert [line.split()[0] for line in record["history"]] == ["loaded", "dropped", "dropped", "pruned"]
    run = run_here("run", "-m", folder, "-t", "onnx:fp32", *SMALL, "--format", "json", "-o", tmp_path / "out")
    report = last_json(run)
    assert report["model"]["parameters"] == after
    assert all(gate["passed"] for gate in report["results"][-1]["gates"])


def test_a_run_measures_the_pruned_against_the_whole(run_here, tmp_path):
    given = ("--prune", "magnitude-layer:2:4", *LOOSE, *SMALL, "--format", "json", "-o", tmp_path / "out")
    report = last_json(run_here("run", "-m", "tiny", "-t", "onnx:int8-weight", *given))
    [step] = report["model"]["prune"]["steps"]
    assert 0.45 < step["share"] <= 0.5
    assert report["model"]["history"][-1].startswith("pruned magnitude-layer:2:4: ")
    row = report["results"][-1]
    assert row["quality"]["ppl_ratio"]["value"] > 1.01, "the reference is the model before it was pruned"
    assert run_here("verify", tmp_path / "out").returncode == 0
    assert "Pruning" in (tmp_path / "out" / "report.html").read_text()
    assert "**Pruning**" in (tmp_path / "out" / "report.md").read_text()


def test_zeros_are_where_the_artifact_has_them(compressed):
    folder, record = compressed("wanda:2:4")
    weights = load_model(folder, "text-generation", "float32")
    [step] = record["prune"]["steps"]
    for name, layer in linear_layers(weights).items():
        used = (layer.weight != 0).reshape(len(layer.weight), -1, 4).sum(-1)
        assert (used <= 2).all() == (name in step["layers"]), name


def test_a_vocabulary_is_pruned_by_compress_alone(compressed, run_here, refused, tiny, tmp_path):
    asked = f"vocabulary:{tiny / 'adapter' / 'eval.txt'}"
    assert "do it first, exporter compress --prune vocabulary:" in refused("-m", "tiny", "--prune", asked)
    folder, record = compressed(asked)
    [step] = record["prune"]["steps"]
    assert step["after"] < step["before"] == 2048
    assert "kept" not in step
    run = run_here("run", "-m", folder, "-t", "onnx:int8-weight", *SMALL, "--format", "json", "-o", tmp_path / "out")
    assert all(gate["passed"] for gate in last_json(run)["results"][-1]["gates"])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("--prune magnitud:0.2", "did you mean magnitude"),
        ("--prune width:2", "a share between 0 and 1"),
        (
            "--prune magnitude:0.2 --prune depth:1",
            "give them the other way round: --prune depth:1 --prune magnitude:0.2",
        ),
        ("--prune width:0.1 --prune width:0.1", "a method works once"),
        ("--prune wanda:2:4 -t coreml:palettize4", "a palette need not have a 0"),
        ("--prune width:0.2 --policy policy.yaml", "a policy is of one model's weights, here the smaller one's"),
        ("--prune vocabulary:nowhere.txt", "cannot read the text nowhere.txt"),
    ],
)
def test_what_makes_no_sense_is_said_before_any_work(asked, said, refused):
    assert said in refused("-m", "tiny", *asked.split())


def test_nothing_to_do_is_said(run_here, tmp_path):
    done = run_here("compress", "-m", "tiny", "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "say how with --prune METHOD[:AMOUNT]" in done.stderr
