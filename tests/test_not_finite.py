"""Answers that are no numbers, and whatever else goes wrong in a row: it fails alone, and says why."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from conftest import SMALL
from test_third_party import LIGHT, fake_install, row_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from exporter.measure.probe import compare_probe
from exporter.measure.quality import NotFinite
from exporter.report.result import Figure, Result
from exporter.targets.onnx.half import half
from exporter.targets.onnx_graph.file import save_graph
from exporter.targets.onnx_graph.session import OnnxDecoder
from exporter.types import GENERATION, Probe

ODD = """
import os
from dataclasses import replace
import numpy as np
from exporter.targets.torch.target import TORCH
from exporter.types import Exported

class Runner:
    engine = "odd"
    device_memory_bytes = {{}}
    def __init__(self, folder, threads): pass
    def __enter__(self): return self
    def __exit__(self, *exc): pass
    {body}

def export(request):
    {export}
    (request.folder / "weights").write_bytes(b"w")
    return Exported(("weights",), build={build})

TARGET = replace(
    TORCH, name={name!r}, export=export, open=Runner, default="bf16", aliases={{}}, check=lambda *it: None,
    precisions={{"bf16": TORCH.precisions["bf16"]}},
)
"""
ANSWER = "def logits(self, ids): return np.zeros((len(ids), 2048), np.float32)"
ODD_ONES = {
    "nans": {"body": "def logits(self, ids): return np.full((len(ids), 2048), np.nan, np.float32)"},
    "infinite": {"body": "def logits(self, ids): return np.full((len(ids), 2048), np.inf, np.float32)"},
    "raising": {"body": "def logits(self, ids): raise ZeroDivisionError('of the runner')"},
    "wordy": {"body": "def logits(self, ids): return 'not an array'"},
    "dying": {"body": "def logits(self, ids): os._exit(3)"},
    "leaving": {"body": "def logits(self, ids): raise SystemExit(0)"},
    "timeless": {"body": f"device_ms = 0.0\n    {ANSWER}"},  # a division by it, in the process of the run itself
    "unclear": {"build": "{'ratio': float('nan')}"},
    "unwritten": {"export": "raise OSError(5, 'Input/output error')"},
}


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """The environment of a machine with packages whose runners and exports do what none should."""
    site = tmp_path_factory.mktemp("odd")
    for name, parts in ODD_ONES.items():
        text = ODD.format(name=name, **{"body": ANSWER, "export": "pass", "build": "None"} | parts)
        fake_install(site, f"is_{name}", text, f"{name} = is_{name}:TARGET")
    return {"PYTHONPATH": str(site)}


@pytest.fixture(scope="module")
def massive(tiny, tmp_path_factory):
    """The shipped model with one channel of its residual stream beyond float16, which its norms then hide."""
    folder = tmp_path_factory.mktemp("massive")
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype="float32")
    with torch.no_grad():
        first, *others = model.model.layers
        first.mlp.down_proj.weight[5] *= 3e4 / first.mlp.down_proj.weight[5].abs().max()
        for layer in others:
            layer.input_layernorm.weight[5] = layer.post_attention_layernorm.weight[5] = 0.001
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def overflowing(run_cli, massive, tmp_path_factory):
    """Its output folder, with both float precisions."""
    out = tmp_path_factory.mktemp("overflowing") / "out"
    done = run_cli("run", "-m", massive, "-t", "onnx:fp32", "-t", "onnx:fp16", *SMALL, "-o", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_what_overflows_float16_stays_in_float32(overflowing):
    report = json.loads((overflowing / "report.json").read_text(), parse_constant=pytest.fail)
    half = next(row for row in report["results"] if row["precision"] == "fp16")
    assert (half["status"], all(gate["passed"] for gate in half["gates"])) == ("ok", True)
    assert "stays in float32, for float16 cannot hold them" in half["reason"]
    assert half["artifact"]["size_ratio"] < 0.8
    nodes = onnx.load(overflowing / "onnx-fp16" / "onnx" / "model.onnx").graph.node
    assert [node.op_type for node in nodes if node.op_type == "Cast"]


def test_an_overflow_that_nobody_looked_for_is_named(overflowing, tmp_path):
    graph = tmp_path / "model.onnx"
    save_graph(half(ir.load(overflowing / "onnx-fp32" / "onnx" / "model.onnx")), graph)
    ids = np.arange(5, 16)
    with OnnxDecoder(graph, 1) as runner:
        first = runner.first_not_finite(ids)
    assert first.startswith("/model/layers.0/mlp/")
    assert first.endswith("is infinite")


class Answering:
    """A runner whose answers are given: to a sequence alone, and in a batch."""

    engine = "none"

    def __init__(self, alone, together):
        self._alone, self._together = alone, together

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def logits(self, ids):
        return np.full((len(ids), 3), self._alone, np.float32)

    def batch(self, ids, mask):
        return np.full((*ids.shape, 3), self._together, np.float32)


@pytest.mark.parametrize(("alone", "batched"), [(math.nan, 0), (0, math.nan), (math.inf, 0), (0, -math.inf)])
def test_a_probe_that_has_no_numbers_is_no_small_error(alone, batched):
    probe = Probe(np.zeros((2, 4), np.int64), np.ones((2, 4), np.int64), np.zeros((2, 4, 3), np.float32))
    with pytest.raises(NotFinite):
        compare_probe(Answering(alone, batched), probe, GENERATION)
    assert compare_probe(Answering(0, 0.5), probe, GENERATION)["logit_error"].value == 0.5


def test_a_token_that_both_rule_out_is_no_difference():
    answers = np.zeros((1, 4, 3), np.float32)
    answers[..., 2] = -np.inf
    probe = Probe(np.zeros((1, 4), np.int64), np.ones((1, 4), np.int64), answers)
    runner = Answering([0, 0.25, -np.inf], [0, 0.25, -np.inf])
    assert compare_probe(runner, probe, GENERATION)["logit_error"].value == 0.25


def test_a_figure_that_is_no_number_is_named_and_null():
    row = Result("npz", "fp16", quality={"kl": Figure(math.nan, 0.0)}, build={"engine": {"sizes": [1.0, math.inf]}})
    assert row.odd == ["quality.kl.value is nan", "build.engine.sizes.1 is inf"]
    told = json.loads(json.dumps(row.to_json(), allow_nan=False))
    assert told["quality"]["kl"] == {"value": None, "se": 0.0, "detail": None}
    assert told["build"]["engine"] == {"sizes": [1.0, None]}


def test_no_failure_of_a_row_costs_the_report_of_the_others(run_cli, odd, tmp_path):
    targets = [word for name in ODD_ONES for word in ("-t", name)]
    gate = ("--max-ppl-ratio", 1e9)  # of a runner that says nothing, the quality is no failure here
    done = run_cli(
        "run", "-m", "models/tiny", *targets, "-t", "torch:bf16", *LIGHT, *gate, "-o", tmp_path / "out", env=odd
    )
    assert done.returncode == 4, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text(), parse_constant=pytest.fail)
    said = {
        "nans": "it answers nan",
        "infinite": "it answers inf",
        "raising": "ZeroDivisionError: of the runner",
        "wordy": "Error",
        "dying": "ended with status 3",
        "leaving": "ended with status 0",
        "timeless": "ZeroDivisionError",
        "unclear": "build.engine.ratio is nan",
        "unwritten": "Input/output error",
    }
    assert said.keys() == ODD_ONES.keys()
    for name, reason in said.items():
        row = row_of(report, name)
        assert (row["status"], reason in row["reason"]) == ("failed", True), row["reason"]
    good = next(row for row in report["results"] if (row["target"], row["precision"]) == ("torch", "bf16"))
    assert good["status"] == "ok"
    assert good["speed"]["decode_tokens_per_s"] > 0
    assert all((tmp_path / "out" / name).stat().st_size for name in ("report.html", "report.md", "junit.xml"))
    assert "Traceback" in done.stderr
    assert "raise ZeroDivisionError('of the runner')" in done.stderr  # a bug is shown where it is
