"""What layers cost a policy in milliseconds: the table of their times, and runs that choose by it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from exporter import Job, cache, run
from exporter.errors import JobError
from exporter.form import IMAGES
from exporter.pipeline.given import check_cost
from exporter.pipeline.timing import layer_costs
from exporter.process import Session
from exporter.quantization.layer import Layer
from exporter.scheme import Scheme
from exporter.targets import known
from exporter.targets.onnx.one_layer import layer_run
from exporter.types import FEATURES, GENERATION, Variant

INT4, INT8 = Scheme(weight="int4", group=32, symmetric=False), Scheme(weight="int8", group=32)
DYNAMIC, STATIC = Scheme(weight="int8", input="dynamic"), Scheme(weight="int8", input="static", range=(-1, 3))
FEW = {"speed": False, "eval_tokens": 512, "calib_tokens": 2048, "threads": 1}
SESSION = Session(lambda what, done, total: None)


@pytest.fixture
def times(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPORTER_CACHE", str(tmp_path / "cache"))
    return lambda: sorted((tmp_path / "cache" / "times").glob("[!.]*"))


def test_layers_of_a_shape_and_a_scheme_are_timed_once(times, monkeypatch):
    other = STATIC.model_copy(update={"range": (-5.0, 2.0)})
    layers = {
        "a": Layer((64, 32), (STATIC, INT8, None)),
        "b": Layer((64, 32), (other, INT8, None)),
        "c": Layer((32, 64), (INT8, None)),
    }
    first = layer_costs(SESSION, "onnx", GENERATION, 1, layers)
    entries = times()
    assert len(entries) == 5
    assert all(cache.TIMES.holds(path) for path in entries)
    assert first.unit == "ms per token"
    assert first.of((64, 32), STATIC) == first.of((64, 32), other) > 0
    mix = {"a": STATIC, "b": INT8, "c": None}
    assert first.total(layers, mix) == pytest.approx(sum(first.of(layers[name].shape, mix[name]) for name in mix))
    with monkeypatch.context() as patch:
        patch.setitem(known.LAYER_RUNS, "onnx", lambda *asked: pytest.fail("it was timed before"))
        again = layer_costs(SESSION, "onnx", GENERATION, 1, layers)
        assert all(
            again.of(one.shape, scheme) == first.of(one.shape, scheme)
            for one in layers.values()
            for scheme in one.choices
        )
        encoder = layer_costs(SESSION, "onnx", FEATURES, 1, layers)
        assert encoder.of((64, 32), INT8) < first.of((64, 32), INT8), "it writes no token"
    broken = entries[0] / "manifest.json"
    broken.write_text(broken.read_text()[:40])
    layer_costs(SESSION, "onnx", GENERATION, 1, layers)
    assert times() == entries
    assert json.loads(broken.read_text())["ms"].keys() == {"1", "128"}
    layer_costs(SESSION, "onnx", GENERATION, 2, {"c": layers["c"]})
    assert len(times()) == 7, "other threads, other times"


@pytest.mark.parametrize("scheme", [INT4, INT8, DYNAMIC, STATIC, None], ids=str)
def test_what_is_timed_computes_the_layer(scheme):
    """Of each copy [rows, N], which are those of the float layer up to its scheme's rounding."""
    exact, got = (layer_run((64, 96), one, 3, 1)(5) for one in (None, scheme))
    assert [answer.shape for answer in got] == [(5, 64)] * 3
    wide = 1.0 if scheme == STATIC else 0.2  # the range cuts off inputs
    assert np.linalg.norm(np.array(got) - exact) < wide * np.linalg.norm(exact)
    assert (scheme is None) == np.array_equal(got, exact)


def test_torch_times_what_it_runs(times):
    pytest.importorskip("torchao")
    costs = layer_costs(SESSION, "torch", GENERATION, 1, {"a": Layer((64, 32), (STATIC, None))})
    assert min(costs.of((64, 32), STATIC), costs.of((64, 32), None)) > 0
    answers = known.LAYER_RUNS["torch"]((64, 32), STATIC, 2, 1)(3)
    assert [tuple(answer.shape) for answer in answers] == [(3, 64)] * 2


@pytest.mark.parametrize(
    ("target", "task", "said"),
    [
        ("tensorrt:int8", GENERATION, "the layers of tensorrt cannot be timed alone, those of onnx and torch can"),
        ("onnx:int8-static", IMAGES, "products of tokens are timed, and a model for image-classification has"),
    ],
)
def test_what_cannot_be_timed_is_refused(target, task, said):
    variant = Variant(*target.split(":"))
    with pytest.raises(JobError, match=f"^--policy-cost latency: {said}.*; or --policy-cost size$"):
        check_cost(Job(model="m", output="o", policy_cost="latency"), variant, task)
    check_cost(Job(model="m", output="o"), variant, task)


def test_it_is_refused_before_any_work(refused):
    said = refused("-m", "tiny", "-t", "litert:int4-weight", "--policy-cost", "latency")
    assert "the layers of litert cannot be timed alone" in said or "pip install" in said


def test_a_mix_that_is_chosen_by_its_time_keeps_the_gates(tmp_path):
    """All but one: which layers leave 4 bits depends on this machine's times, and so does the share that keeps them."""
    job = Job(
        model="tiny", target=("onnx:int4-weight",), max_kl=1e-3, policy_cost="latency", output=tmp_path / "out", **FEW
    )
    report = run(job)
    row = next(row for row in report["results"] if row["target"] == "onnx")
    assert {gate["name"] for gate in row["gates"] if not gate["passed"]} <= {"min_named_share"}
    record = row["build"]["quantization"]
    assert record["cost_unit"] == "ms per token"
    assert record["cost"] > 0
    assert len(record["schemes"]) > 1
    assert "by their times on this machine (--policy-cost latency)" in (tmp_path / "out" / "report.md").read_text()
