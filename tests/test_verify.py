"""An output folder read again: `verify` and `report`."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import SMALL


@pytest.fixture(scope="module")
def built(run_here, tmp_path_factory):
    """The output of a run."""
    out = tmp_path_factory.mktemp("built") / "out"
    done = run_here("run", "-m", "models/tiny", "--target", "torch:bf16", *SMALL, "-o", out)
    assert done.returncode == 0, done.stderr
    return out


def test_verify_finds_a_changed_byte(run_here, built, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(built, copy)
    whole = run_here("verify", copy, "--format", "json")
    assert whole.returncode == 0
    assert json.loads(whole.stdout) == {"torch-bf16": [], "reference": []}
    model = copy / "torch-bf16" / "model.safetensors"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    (copy / "reference" / "reference.npz").unlink()
    damaged = run_here("verify", copy)
    assert damaged.returncode != 0
    assert "torch-bf16: model.safetensors has other contents than when it was written" in damaged.stdout
    assert "reference: reference.npz is missing" in damaged.stdout


def test_report_renders_again(run_here, built, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(built, copy)
    names = ("report.html", "report.md", "junit.xml")
    before = {name: (copy / name).read_bytes() for name in names}
    for name in names:
        (copy / name).unlink()
    done = run_here("report", copy)
    assert done.returncode == 0, done.stderr
    assert "torch:bf16" in done.stdout
    assert {name: (copy / name).read_bytes() for name in names} == before
