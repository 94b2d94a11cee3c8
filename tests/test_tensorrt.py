"""Whole jobs of the shipped model through TensorRT-RTX's real parser and builder, without a GPU; and one with a GPU."""

from __future__ import annotations

import copy
import json
import math
import re

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from exporter import Job, run
from exporter.errors import BuildError
from exporter.report.built import build_lines
from exporter.report.table import value
from exporter.runner import CachedRunner, StandInRunner
from exporter.targets import known
from exporter.targets.tensorrt.platform import RTX, cannot_run
from exporter.targets.tensorrt.profile import Profile
from exporter.targets.tensorrt.stand_in import ENGINE, open_stand_in
from exporter.types import GENERATION, Variant

pytestmark = pytest.mark.usefixtures("tensorrt_rtx")


def job(model, output, *target, **more):
    small = {"eval_tokens": 256, "window": 64, "threads": 1}
    return Job(model=str(model), target=target or ("tensorrt-rtx",), output=output, **small | more)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(report, output folder) of the shipped model's fp32 and fp16 engines, for two kinds of GPU."""
    if cannot_run(RTX) is None:
        pytest.skip("here the engine itself is measured: see the tests marked gpu")
    output = tmp_path_factory.mktemp("trt") / "out"
    variants = ("tensorrt-rtx:fp32", "tensorrt-rtx:fp16")
    return run(
        job("tiny", output, *variants, repeats=1, **{"tensorrt-rtx": {"compute_capability": "sm89,sm120"}})
    ), output


def rows_of(report):
    return {row["precision"]: row for row in report["results"] if row["target"].startswith("tensorrt")}


def test_rows(done):
    report, _ = done
    assert report["passed"], report["results"]
    rows = rows_of(report)
    for row in rows.values():
        build = row["build"]["engine"]
        assert build["parsed"] is True
        assert build["refused"] == []
        assert re.fullmatch(r"tensorrt-rtx \d+\.\d+\.\d+\.\d+", build["built_by"])
        assert build["capabilities"] == ["sm89", "sm120"]
        assert build["engine_bytes"] == row["artifact"]["bytes"] > 1_000_000
        assert build["seconds"].keys() >= {"graph", "parse", "build"}
        assert build["layers"]["count"] == sum(build["layers"]["by_type"].values()) > 10
        assert row["artifact"]["engine"] == ENGINE
        assert row["speed"]["latency_ms"] is row["speed"]["decode_tokens_per_s"] is row["memory"]["peak_rss_bytes"]
        assert row["memory"]["peak_rss_bytes"] is None
        assert row["speed"]["untimed"] == cannot_run(RTX)
        assert row["reason"].endswith(f"latency: {row['speed']['untimed']}")
    assert value(rows["fp32"], "ppl_ratio") == pytest.approx(1, abs=1e-5)
    assert rows["fp16"]["artifact"]["bytes"] < rows["fp32"]["artifact"]["bytes"]
    assert rows["fp16"]["build"]["engine"]["layers"]["by_precision"]["Half"] > 10
    assert "Half" not in rows["fp32"]["build"]["engine"]["layers"]["by_precision"]
    assert 0 < value(rows["fp16"], "kl") < 1e-3


def test_int8_under_a_policy(tmp_path):
    """Signed Q/DQ where the policy allows; the engine's own log says that its products became integers."""
    options = {"tensorrt-rtx": {"compute_capability": ["sm89"]}, "calib_tokens": 2048, "speed": False}
    report = run(job("tiny", tmp_path / "out", "tensorrt-rtx:int8", max_ppl_ratio=1.1, **options))
    assert report["passed"], report["results"]
    row = rows_of(report)["int8"]
    assert row["build"]["engine"]["int8_share"] > 0.8
    assert row["build"]["engine"]["layers"]["by_precision"]["Int8"] > 10
    assert 0 < value(row, "kl") < 0.05
    assert any("signed static input" in kind for kind in row["build"]["quantization"]["schemes"])
    assert any(", rounded up to 16 an octave" in line for line in row["build"]["quantization"]["history"])
    ranges = [one["range"] for one in row["build"]["quantization"]["policy"].values() if one and one["range"]]
    exponents = [16 * math.log2(high) for low, high in ranges]
    assert exponents == pytest.approx([round(one) for one in exponents], abs=1e-6)
    graph = onnx.load(tmp_path / "out" / "tensorrt-rtx-int8" / "model.onnx", load_external_data=False)
    scales = {node.input[1] for node in graph.graph.node if node.op_type == "QuantizeLinear"}
    sizes = {float(numpy_helper.to_array(one)) for one in graph.graph.initializer if one.name in scales}
    assert sizes == {float(np.float16(high / 127)) for _, high in ranges}


def test_the_folder(done):
    _, output = done
    folder = output / "tensorrt-rtx-fp16"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "model.plan", "model.onnx", "profiles.json", "build.log", "layers.json", "rebuild.sh", "run.sh",
        "manifest.json", "README.md", "MODEL_CARD.md",
        "triton/tiny/config.pbtxt", "triton/tiny/1/model.onnx",
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["weights"] == ["model.plan"]
    assert manifest["build"]["built_by"].startswith("tensorrt-rtx ")
    assert (folder / "model.plan").stat().st_size == manifest["build"]["engine_bytes"]
    assert "Engine generation completed" in (folder / "build.log").read_text()
    assert str(output) not in (folder / "build.log").read_text()
    layers = json.loads((folder / "layers.json").read_text())
    assert any(layer["type"] == "gemm" and layer["inputs"][0] == "Half" for layer in layers)
    shapes = json.loads((folder / "profiles.json").read_text())["inputs"]
    assert shapes["input_ids"] == {"min": [1, 1], "opt": [1, 128], "max": [8, 512]}
    assert shapes["past_key_values.0.key"] == {"min": [1, 2, 0, 64], "opt": [1, 2, 0, 64], "max": [8, 2, 511, 64]}
    # past + new = total, at each of the three
    assert shapes["attention_mask"] == {"min": [1, 1], "opt": [1, 128], "max": [8, 1023]}


def test_its_page_names_nvidias_tool_and_tritons_folder(done):
    _, output = done
    page = (output / "tensorrt-rtx-fp16" / "README.md").read_text()
    assert "One run with NVIDIA's `tensorrt_rtx`" in page
    assert "The engine takes batches of `1:1:8` and texts of `1:128:512` tokens" in page
    assert 'tritonserver --model-repository="$PWD/triton"' in page
    assert "not TensorRT-RTX's" in page
    command = (output / "tensorrt-rtx-fp16" / "run.sh").read_text().splitlines()[-1]
    shapes = dict(one.split(":") for one in command.split("--shapes=")[1].split(","))
    assert shapes["input_ids"] == "1x1"  # a token after a text in the cache
    assert (shapes["past_key_values.0.key"], shapes["attention_mask"]) == ("1x2x127x64", "1x128")


def test_no_size_counts_what_inference_does_not_need(done):
    report, output = done
    row = rows_of(report)["fp16"]
    folder = output / "tensorrt-rtx-fp16"
    assert row["artifact"]["bytes"] == (folder / "model.plan").stat().st_size
    assert row["artifact"]["tokenizer_bytes"] == sum(
        (folder / name).stat().st_size
        for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
    )


def test_tritons_repository_is_whole_by_itself_and_holds_no_engine_that_triton_cannot_open(done):
    _, output = done
    model = output / "tensorrt-rtx-fp16" / "triton" / "tiny"
    assert (model / "1" / "model.onnx").stat().st_ino == (model.parents[1] / "model.onnx").stat().st_ino
    text = (model / "config.pbtxt").read_text()
    assert text.startswith('name: "tiny"\nbackend: "onnxruntime"\nmax_batch_size: 0\n')
    assert '{ name: "past_key_values.2.value" data_type: TYPE_' in text
    assert '{ name: "logits" data_type: TYPE_FP32 dims: [ -1, -1, 2048 ] }' in text


def test_the_command_that_builds_it_again(done):
    _, output = done
    [_, _, line] = (output / "tensorrt-rtx-fp32" / "rebuild.sh").read_text().splitlines()
    assert line.startswith("tensorrt_rtx --onnx=model.onnx --saveEngine=model.plan --minShapes=input_ids:1x1,")
    assert ",past_key_values.0.key:8x2x511x64," in line
    assert "--noTF32 --computeCapabilities=89,120" in line


def test_the_report_tells_of_the_engine(done):
    report, output = done
    for name in ("report.md", "report.html"):
        text = (output / name).read_text()
        assert re.search(r"engine built by tensorrt-rtx 1\.\d+.*× its graph", text), name
        assert "for sm89, sm120" in text
        assert re.search(r"kept in float32, made of positions: \d operators \(.+, …\)", text)
        assert "quality: onnxruntime-cpu (graph handed to TensorRT); latency: no CUDA device" in text
    row = copy.deepcopy(report["results"][-1])
    row["build"]["engine"]["kept_float"] += ["/layers.3/Mul: beyond float16 on calibration text"]
    kept = [line for line in build_lines(row) if line.startswith("kept in float32, ")]
    assert kept[0] == "kept in float32, beyond float16 on calibration text: 1 operator (/layers.3/Mul)"
    assert len(kept) == 2, "the others are counted together"


def test_the_proof_is_held_to_the_profile(done):
    _, output = done
    target = known.get("tensorrt-rtx")
    with target.open(output / "tensorrt-rtx-fp16", 1) as runner:
        assert isinstance(runner, CachedRunner)
        assert isinstance(runner, StandInRunner)
        ids = np.arange(3, 23).reshape(10, 2)  # more rows than the profile's greatest batch
        together = runner.batch(ids, np.ones_like(ids))
        assert together.shape == (10, 2, 2048)
        assert np.abs(together[9] - runner.logits(ids[9])).max() < 0.05
        long = np.ones(513, np.int64)
        outside = r"a text of 513 tokens is outside the engine's profile, length=1:128:512; build it with a profile"
        with pytest.raises(BuildError, match=outside):
            runner.logits(long)
        runner.prefill(long[:512])
        with pytest.raises(BuildError, match=outside):
            runner.step(1)


@pytest.mark.gpu
def test_engine_on_a_device(tmp_path):
    """The engine's own logits against those of its graph on the CPU, alone, in a batch, and through the cache."""
    name = "tensorrt" if known.unavailable(Variant("tensorrt", "fp16")) is None else "tensorrt-rtx"
    report = run(job("tiny", tmp_path / "out", name))
    [row] = rows_of(report).values()
    assert row["status"] == "ok", row["reason"]
    assert row["speed"]["untimed"] is None, row["speed"]["untimed"]
    assert torch.cuda.get_device_name() in row["artifact"]["engine"]
    assert row["artifact"]["engine"].startswith(f"{name} ")
    assert row["memory"]["device_bytes"].keys() == {"engine", "context"}
    assert row["speed"]["latency_ms"]["decode"]["p50"] > 0
    folder = tmp_path / "out" / f"{name}-fp16"
    profile = Profile.read((folder / "profiles.json").read_text())
    ids = np.arange(5, 45)
    with (
        known.get(name).open_cuda(folder, 1, 0) as engine,
        open_stand_in(folder, 1, profile, GENERATION, "compared") as proof,
    ):
        expected = proof.logits(ids)
        assert np.abs(engine.logits(ids) - expected).max() < 0.05
        steps = [engine.prefill(ids[:20]), *(engine.step(int(token)) for token in ids[20:])]
        assert np.abs(np.stack(steps) - expected[19:]).max() < 0.05
        steps = [engine.prefill(ids[:7]), *(engine.step(int(token)) for token in ids[7:])]
        assert np.abs(np.stack(steps) - expected[6:]).max() < 0.05
