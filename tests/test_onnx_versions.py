"""Which ONNX Runtime opens an artifact: derived from its graph, stated in its row and manifest, and held on demand."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from conftest import SMALL
from test_onnx_quantize import forward, network

from exporter.errors import BuildError, JobError
from exporter.job import Job
from exporter.pipeline.sections import read_sections
from exporter.report.columns import detail_columns
from exporter.scheme import Scheme
from exporter.targets.onnx.options import OnnxOptions
from exporter.targets.onnx.quantize import quantize_by_rule
from exporter.targets.onnx_graph import plain, versions
from exporter.targets.onnx_graph.linear import find_matrices
from exporter.targets.onnx_graph.nodes import finish
from exporter.targets.onnx_graph.schemes import quantize

PRECISIONS = ("fp32", "fp16", "int8-weight", "int8-dynamic", "int4-weight")


def kinds(model):
    return {node.op_type for node in model.graph}


def one_node(op, inputs=1, domain="com.microsoft", opset=17, ir_version=8, **attributes):
    """A graph of one node with so many inputs."""
    values = [
        ir.Value(name=f"x{n}", shape=ir.Shape(["b"]), type=ir.TensorType(ir.DataType.FLOAT)) for n in range(inputs)
    ]
    node = ir.node(op, values, attributes, domain=domain)
    node.outputs[0].name = "y"
    graph = ir.Graph(values, node.outputs, nodes=[node], opset_imports={"": opset, "com.microsoft": 1}, name="g")
    return ir.Model(graph, ir_version=ir_version)


@pytest.mark.parametrize(
    ("model", "first", "because"),
    [
        (one_node("Add", 2, ""), "1.17", "IR version 8"),
        (one_node("Add", 2, "", ir_version=10), "1.18", "IR version 10"),
        (one_node("Add", 2, "", opset=22, ir_version=10), "1.21", "opset 22"),
        (one_node("MatMulNBits", 3, bits=4, accuracy_level=4), "1.17", "MatMulNBits"),
        (one_node("MatMulNBits", 6, bits=4), "1.19", "MatMulNBits with 6 inputs"),
        (one_node("MatMulNBits", 3, bits=8), "1.22", "MatMulNBits with bits=8"),
        (one_node("GatherBlockQuantized", 3, bits=8), "1.23", "GatherBlockQuantized"),
        (
            one_node("DequantizeLinear", 3, "", opset=21, ir_version=10, block_size=32),
            "1.19",
            "DequantizeLinear with block_size",
        ),
        (one_node("MatMulNBits", 3, bits=4, a_new_one=1), None, "MatMulNBits with a_new_one"),
        (one_node("MatMulNBits", 40), None, "MatMulNBits with 40 inputs"),
        (one_node("AnOperatorToCome"), None, "AnOperatorToCome"),
        (one_node("Mine", domain="my.domain"), None, "my.domain's Mine"),
        (one_node("Add", 2, "", opset=99), None, "opset 99"),
    ],
)
def test_what_a_graph_needs(model, first, because):
    told = versions.describe(model)
    assert told["min_onnxruntime"] == first
    assert because in told["because"]
    assert told["ir_version"] == model.ir_version
    assert told["opsets"]["ai.onnx"] == model.opset_imports[""]


def test_an_operator_that_is_too_new_is_refused_with_its_name():
    with pytest.raises(BuildError, match=r"ONNX Runtime 1\.18: .*MatMulNBits with 6 inputs needs 1\.19"):
        versions.fit(one_node("MatMulNBits", 6, bits=4), "1.18")
    with pytest.raises(BuildError, match=r"AnOperatorToCome, of which it is not known which version has it"):
        versions.fit(one_node("AnOperatorToCome"), "1.31")
    with pytest.raises(BuildError, match=r"opset 23 \(RMSNormalization\) needs 1\.23"):
        versions.fit(one_node("RMSNormalization", 2, "", opset=23, ir_version=10), "1.20")


def test_an_opset_in_which_all_is_the_same_is_declared():
    model = one_node("Add", 2, "", opset=22, ir_version=11)
    assert versions.fit(model, "1.20")["min_onnxruntime"] == "1.18"
    assert (model.opset_imports[""], model.ir_version) == (21, 10)


def test_empty_inputs_at_the_end_need_nothing():
    model = one_node("MatMulNBits", 3)
    [node] = model.graph
    node.resize_inputs(6)
    assert versions.describe(model)["min_onnxruntime"] == "1.19"
    assert versions.fit(model, None)["min_onnxruntime"] == "1.17"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scheme", [Scheme(weight=w, group=16, symmetric=s) for w in ("int8", "int4") for s in (1, 0)])
def test_lookups_and_products_in_plain_operators_are_the_same_function(tied, scheme):
    answers, proto = {}, ir.to_proto(network(tied, gemm=False)[0])
    for oldest in (None, "1.22", "1.20"):
        model = ir.from_proto(proto)
        for matrix in find_matrices(model):
            quantize(model, matrix, scheme)
        finish(model)
        size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
        told = versions.fit(model, oldest)
        assert oldest is None or versions.number(told["min_onnxruntime"]) <= versions.number(oldest)
        assert (plain.LOOKUP in kinds(model)) == (oldest is None and tied), "shared bytes alone keep the operator"
        assert (plain.PRODUCT in kinds(model)) == (oldest != "1.20" or scheme.bits == 4)
        grown = sum(value.const_value.nbytes for value in model.graph.initializers.values()) / size
        assert grown < 1.2, "the codes stay as small as they were"
        answers[oldest] = forward(model)
    near = {"rtol": 1e-4, "atol": 1e-4 * np.abs(answers[None]).max()}
    np.testing.assert_allclose(answers["1.22"], answers[None], **near)
    # The operator rounds its inputs to 8 bits too (accuracy_level 4), a float product does not.
    error = np.linalg.norm(answers["1.20"] - answers[None]) / np.linalg.norm(answers[None])
    assert error < 0.02


def test_an_encoders_table_needs_no_new_operator():
    model, _ = network(tied=False, gemm=True)
    quantize_by_rule(model, "int8-dynamic", decoder=False)
    assert plain.LOOKUP in kinds(model)
    told = versions.fit(model, None)
    assert plain.LOOKUP not in kinds(model)
    assert versions.number(told["min_onnxruntime"]) < (1, 23)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1.2, 'write it in quotes, as "1.20"'),
        ("new", "is written as 1.20 or 1.20.1"),
        ("1.9", "versions before 1.17"),
    ],
)
def test_a_version_that_is_none(value, said):
    with pytest.raises(JobError, match="--onnx-min-onnxruntime") as error:
        read_sections(Job(model="tiny", output="out", onnx={"min_onnxruntime": value}))
    assert said in str(error.value)
    assert OnnxOptions(min_onnxruntime="1.20.1").min_onnxruntime == "1.20.1"


@pytest.fixture(scope="module")
def held(run_here, tmp_path_factory):
    """The shipped decoder in every precision, for an old runtime and for a very old one."""
    outputs = {}
    for oldest, precisions in (("1.20", PRECISIONS), ("1.18", ("int8-weight",))):
        output = tmp_path_factory.mktemp("held") / "out"
        wanted = [word for one in precisions for word in ("-t", f"onnx:{one}")]
        more = ("--policy", "off", "--onnx-min-onnxruntime", oldest)
        done = run_here("run", *SMALL, "-m", "models/tiny", *wanted, *more, "-o", output)
        outputs[oldest] = (done, json.loads((output / "report.json").read_text()), output)
    return outputs


def test_the_option_is_held_and_the_version_is_told(held):
    done, report, output = held["1.20"]
    assert done.returncode == 0, done.stderr
    rows = {row["precision"]: row for row in report["results"] if row["target"] == "onnx"}
    assert set(rows) == set(PRECISIONS)
    for precision, row in rows.items():
        graph = row["build"]["graph"]
        assert versions.number(graph["min_onnxruntime"]) <= (1, 20), precision
        model = ir.load(output / row["path"] / "onnx" / "model.onnx")
        assert versions.describe(model) == graph, "the report says what the file needs"
        assert json.loads((output / row["path"] / "manifest.json").read_text())["graph"] == graph
    [column] = [column for column in detail_columns(report) if column.title == "ONNX Runtime"]
    assert column.cell(rows["fp32"]) == "1.17 (opset 18, IR 8)"
    assert "1.17 (opset 18, IR 8)" in (output / "report.html").read_text()
    assert report["results"][0]["build"]["graph"] is None, "PyTorch's reference is no graph"


def test_what_cannot_be_written_for_it_fails_its_row(held):
    done, report, _ = held["1.18"]
    assert done.returncode == 4
    [row] = [row for row in report["results"] if row["target"] == "onnx"]
    assert row["status"] == "failed"
    assert "MatMulNBits with bits=8 needs 1.22" in row["reason"]
