"""`exporter inspect`: what is in a model file, of every format that a target writes."""

from __future__ import annotations

import json

import gguf
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.command.inspect import found, print_inspected
from exporter.errors import BuildError, JobError

pytestmark = pytest.mark.quick


@pytest.fixture
def graph(tmp_path):
    """y = relu(x w), with a second, 4-bit tensor."""
    weight = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    codes = helper.make_tensor("codes", TensorProto.INT4, [3, 3], [1] * 9)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("Relu", ["xw"], ["y"], domain="own")]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in
             (("x", ["batch", 4]), ("y", ["batch", 3]))]  # fmt: skip
    made = helper.make_model(helper.make_graph(nodes, "main", ports[:1], ports[1:], [weight, codes]))
    onnx.save(made, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def told(path, capsys):
    print_inspected(path, "json")
    return json.loads(capsys.readouterr().out)


def test_onnx(graph, capsys):
    said = told(graph.parent, capsys)  # the folder that it is in
    [main] = said["functions"]
    assert said["file"] == str(graph)
    assert main["inputs"] == [{"name": "x", "type": "float", "shape": ["batch", 4]}]
    assert main["outputs"] == [{"name": "y", "type": "float", "shape": ["batch", 3]}]
    assert main["operators"] == {"MatMul": 1, "own.Relu": 1}
    assert said["bytes"] == {"float": 48, "int4": 5}
    assert said["metadata"]["opsets"]["ai.onnx"] > 0


def test_gguf(tmp_path, capsys):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_block_count(2)
    writer.add_tensor("token_embd.weight", np.ones((2, 32), np.float32))
    writer.add_tensor("blk.0.w", np.ones((4, 8), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    said = told(tmp_path / "model.gguf", capsys)
    assert said["bytes"] == {"f32": 256, "f16": 64}
    assert said["metadata"]["llama.block_count"] == 2


def test_it_is_a_table_for_people(graph, capsys):
    print_inspected(graph, "human")
    shown = capsys.readouterr().out
    assert "batch × 4" in shown
    assert "own.Relu" in shown
    assert "90.6%" in shown


def test_what_cannot_be_read(graph, tmp_path, capsys):
    with pytest.raises(
        JobError, match=r"gone\.onnx is not there; give a model file \(.*\.mlpackage.*\) or an artifact"
    ):
        found(tmp_path / "gone.onnx")
    (tmp_path / "other").mkdir()
    with pytest.raises(JobError, match="it is none, and holds none"):
        found(tmp_path / "other")
    (tmp_path / "second.onnx").touch()
    with pytest.raises(JobError, match=r"it holds model\.onnx, second\.onnx: name one"):
        found(tmp_path)
    for name in ("second.onnx", "second.gguf"):
        (tmp_path / name).write_bytes(b"\xff\xff nonsense")
        with pytest.raises(BuildError, match=rf"{name} is no (ONNX|GGUF) file"):
            print_inspected(tmp_path / name, "human")


def test_the_command(graph, run_cli, tmp_path):
    done = run_cli("inspect", graph)
    assert done.returncode == 0, done.stderr
    assert "MatMul" in done.stdout
    done = run_cli("inspect", tmp_path / "gone")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
