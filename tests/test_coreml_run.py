"""Whole runs to Core ML under a policy of palettes."""

from __future__ import annotations

import json

import pytest
from conftest import SMALL, last_json

from exporter.checkpoint.linear import linear_layers
from exporter.checkpoint.model import load_model
from exporter.quantization.policy import Policy
from exporter.scheme import Scheme
from exporter.targets import known
from exporter.targets.coreml.held import weights_of

PALETTE4, PALETTE6, INT8 = (Scheme(weight=weight) for weight in ("palette4", "palette6", "int8"))


def test_a_policy_mixes_palettes(run_here, tiny, tmp_path):
    names = list(linear_layers(load_model(tiny, "text-generation", "float32", False)))
    modules = {"*": PALETTE4, names[0]: "float", names[1]: INT8, names[2]: PALETTE6}
    (tmp_path / "policy.yaml").write_text(Policy(modules=modules).to_yaml(), encoding="utf-8")
    given = ("--policy", tmp_path / "policy.yaml", "--calib-tokens", 4096, "--format", "json", "-o", tmp_path / "out")
    done = run_here("run", "-m", "tiny", "-t", "coreml:palettize4", *SMALL, *given)
    row = last_json(done)["results"][-1]
    assert row["status"] == "ok", row
    quantization = row["build"]["quantization"]
    assert quantization["schemes"] == {"palette4": len(names) - 3, "float": 1, "int8 per channel": 1, "palette6": 1}
    folder = tmp_path / "out" / "coreml-palettize4"
    bits = [one.bits for one in weights_of(folder) if not one.table]
    assert sorted(set(bits)) == [4, 6, 8, 16]
    assert bits.count(4) >= len(names) - 5
    manifest = json.loads((folder / "manifest.json").read_text())
    assert any(line.startswith("palettes of ") and "weighted by" in line for line in manifest["history"]), manifest


def test_without_one_four_bits_are_mixed_with_eight(run_here, tmp_path):
    given = ("--calib-tokens", 4096, "--max-ppl-ratio", 1.05, "--format", "json", "-o", tmp_path / "out")
    row = last_json(run_here("run", "-m", "tiny", "-t", "coreml:palettize4", *SMALL, *given))["results"][-1]
    assert all(gate["passed"] for gate in row["gates"])
    assert row["build"]["quantization"]["schemes"].keys() <= {"palette4", "int8 per channel", "float"}
    assert row["build"]["quantization"]["schemes"]["palette4"] > 1
    assert row["quality"]["ppl_ratio"]["value"] < 1.05


@pytest.mark.parametrize("scheme", [PALETTE4, PALETTE6], ids=str)
def test_no_other_target_takes_a_palette(scheme):
    takes = {
        f"{name}:{precision}"
        for name, target in known.BUILTIN.items()
        for precision in target.precisions
        if target.schemes(precision, scheme) is None
    }
    own = {"coreml:palettize4"} | ({"coreml:palettize6"} if scheme == PALETTE6 else set())
    assert takes == own | {"torch:int8-static"}  # there a layer's weights are floats of any value
