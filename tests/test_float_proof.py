"""A quantized graph is made only of a float graph that agrees with its checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from conftest import SMALL
from safetensors.torch import load_file, save_file

from exporter.errors import BuildError
from exporter.targets.onnx_graph.float_proof import prove
from exporter.targets.tensorrt.graph import write_graph
from exporter.types import GENERATION, Checkpoint, ExportRequest


@pytest.fixture(scope="module")
def whole(run_here, tmp_path_factory):
    """The shipped model's float graph and the reference's answers."""
    out = tmp_path_factory.mktemp("whole") / "out"
    done = run_here("run", *SMALL, "-m", "tiny", "-t", "onnx:fp32", "-o", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def request(whole, folder, tiny, sha256=None):
    known = json.loads((whole / "reference" / "manifest.json").read_text())["model_sha256"]
    checkpoint = Checkpoint(tiny, GENERATION, "tiny", sha256 or known, 0)
    return ExportRequest(checkpoint, "int8-weight", folder, folder, 1, reference=whole / "reference")


def changed(whole, folder):
    """The graph with one weight of its own."""
    model = ir.load(whole / "onnx-fp32" / "onnx" / "model.onnx")
    largest = max(model.graph.initializers.values(), key=lambda value: value.const_value.nbytes)
    largest.const_value = ir.Tensor(largest.const_value.numpy() * np.float32(1.1), name=largest.name)
    ir.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("sha256", [None, "another"])  # the reference's own checkpoint, and one that torch must run
def test_a_graph_that_agrees_is_proven_once(whole, tmp_path, tiny, sha256):
    graph = tmp_path / "model.onnx"
    ir.save(ir.load(whole / "onnx-fp32" / "onnx" / "model.onnx"), graph)
    prove(graph, request(whole, tmp_path, tiny, sha256))
    graph.unlink()  # what came out stands beside it
    prove(graph, request(whole, tmp_path, tiny, sha256))


@pytest.mark.parametrize("sha256", [None, "another"])
def test_a_graph_that_does_not_is_not_quantized(whole, tmp_path, tiny, sha256):
    graph = changed(whole, tmp_path)
    for _ in range(2):  # the second time from what stands beside it
        with pytest.raises(BuildError, match=r"its float graph does not agree with the reference \(logit error"):
            prove(graph, request(whole, tmp_path, tiny, sha256))


@pytest.fixture(scope="module")
def another(tiny, tmp_path_factory):
    """The shipped model with one weight of its own: what it is exported to does not answer as the reference did."""
    folder = tmp_path_factory.mktemp("another") / "model"
    shutil.copytree(tiny, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"] *= 1.5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("agrees", [True, False])
def test_nothing_is_quantized_for_tensorrt_that_does_not_agree(agrees, whole, tmp_path, tiny, another):
    asked = request(whole, tmp_path, tiny if agrees else another)
    if agrees:
        assert "prove" in write_graph(asked, tmp_path / "int8.onnx").seconds
        return
    with pytest.raises(BuildError, match=r"its float graph does not agree with the reference \(logit error"):
        write_graph(asked, tmp_path / "int8.onnx")
    assert not (tmp_path / "int8.onnx").exists()
    write_graph(replace(asked, precision="fp16"), tmp_path / "half.onnx")  # its own gates judge what is not quantized
