"""Encoder-decoders for TensorRT: both graphs by TensorRT-RTX's parser and builder, held against torch, and broken."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess

import numpy as np
import onnx
import pytest
import text2text_models as made
from onnx import numpy_helper

from exporter import Job, run
from exporter.checkpoint.opened import open_checkpoint
from exporter.errors import BuildError, JobError
from exporter.form import GENERATION, TEXT2TEXT
from exporter.report.table import value
from exporter.runner import EncoderDecoderRunner, StandInRunner
from exporter.targets import known
from exporter.targets.tensorrt.platform import RTX, cannot_run
from exporter.targets.tensorrt.profile import Profile
from exporter.targets.tensorrt.target import RTX_TARGET, TENSORRT_TARGET
from exporter.types import Checkpoint, ExportRequest, Variant

pytestmark = pytest.mark.usefixtures("tensorrt_rtx")
HALVES = ("encoder", "decoder")
SMALL = {"eval_tokens": 400, "calib_tokens": 1024, "speed": False, "threads": 1}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """`artifacts(family, precision, target)`: the checkpoint, the folder and what its export said, made once."""
    if cannot_run(RTX) is None:
        pytest.skip("here the engines themselves are measured: see the tests marked gpu")
    place, done = tmp_path_factory.mktemp("tensorrt-text2text"), {}

    def of(family, precision, target=RTX_TARGET, **options):
        key = f"{family}-{target.name}-{precision}"
        if key not in done:
            model, folder = place / family / "model", place / key
            if not model.is_dir():
                made.checkpoint(model, family)
            folder.mkdir()
            (place / f"{key}-scratch").mkdir()
            source = Checkpoint(model, TEXT2TEXT, "a/model", "0" * 64, 1)
            request = ExportRequest(
                source, precision, folder, place / f"{key}-scratch", 1, target.options(**options),
                progress=lambda *step: None,
            )  # fmt: skip
            exported = target.export(request)
            told = {"task": TEXT2TEXT, "variant": f"{target.name}:{precision}"}
            (folder / "manifest.json").write_text(json.dumps(told))
            done[key] = model, folder, exported
        return done[key]

    return of


@pytest.mark.parametrize(
    ("family", "precision", "error"),
    [("T5", "fp32", 1e-3), ("Bart", "fp32", 1e-3), ("T5", "fp16", 0.1), ("Bart", "fp16", 0.1)],
)
def test_as_torch_at_other_lengths_than_traced(artifacts, family, precision, error):
    model, folder, exported = artifacts(family, precision)
    assert exported.weights == ("encoder/model.plan", "decoder/model.plan")
    sizes = [(folder / name).stat().st_size for name in exported.weights]
    assert min(sizes) > 100_000
    assert exported.build["engine_bytes"] == sum(sizes)
    rng = np.random.default_rng(0)
    with open_checkpoint(model, TEXT2TEXT, 1) as own, RTX_TARGET.open(folder, 1) as graph:
        assert isinstance(graph, EncoderDecoderRunner)
        assert isinstance(graph, StandInRunner)
        for source, target in ((1, 2), (11, 9), (90, 70)):
            ids, wanted = rng.integers(4, 250, source), rng.integers(4, 250, target)
            np.testing.assert_allclose(graph.encode(ids), own.encode(ids), atol=error)
            expected, got = own.logits(wanted), graph.logits(wanted)
            np.testing.assert_allclose(got, expected, atol=error)
            assert expected.std() > 5 * error  # or else anything would be near
            steps = [graph.prefill(wanted[:1]), *(graph.step(int(token)) for token in wanted[1:])]
            np.testing.assert_allclose(np.stack(steps), expected, atol=error)
        sources, mask = rng.integers(4, 250, (10, 13)), np.ones((10, 13), np.int64)  # more rows than go together
        mask[1, 6:], wanted = 0, rng.integers(4, 250, (10, 8))
        padded = graph.paired(sources, mask, wanted)
        np.testing.assert_allclose(padded, own.paired(sources, mask, wanted), atol=error)
        with pytest.raises(BuildError, match="513 tokens is outside the engine's profile"):
            graph.encode(np.ones(513, np.int64))
        with pytest.raises(BuildError, match="513 tokens is outside the engine's profile"):
            graph.logits(np.ones(513, np.int64))


def test_what_one_graph_answers_is_what_the_other_takes(artifacts):
    _, folder, _ = artifacts("T5", "fp16")
    encoder, decoder = (onnx.load(folder / half / "model.onnx").graph for half in HALVES)
    kinds = {one.name: one.type.tensor_type.elem_type for one in (*encoder.output, *decoder.input)}
    assert kinds["last_hidden_state"] == kinds["encoder_hidden_states"] == onnx.TensorProto.FLOAT
    assert kinds["past_key_values.0.encoder.key"] == onnx.TensorProto.FLOAT16
    assert {node.op_type for node in decoder.node}.isdisjoint({"If", "Loop"})
    told = json.loads((folder / "profiles.json").read_text())
    assert (told["source"], told["length"]) == ("1:128:512", "1:128:512")
    assert told["inputs"]["decoder"]["past_key_values.0.encoder.key"]["max"] == [8, 4, 512, 16]
    assert told["inputs"]["decoder"]["past_key_values.0.decoder.key"]["max"] == [8, 4, 511, 16]


def test_triton_and_the_scripts_have_both(artifacts, tmp_path):
    _, folder, exported = artifacts("T5", "fp16")
    for half in HALVES:
        model = folder / "triton" / f"model-{half}"
        assert (model / "config.pbtxt").read_text().startswith(f'name: "model-{half}"\nbackend: "onnxruntime"\n')
        assert (model / "1" / "model.onnx").stat().st_ino == (folder / half / "model.onnx").stat().st_ino
    assert {"run.sh", "rebuild.sh", "encoder/run.sh", "decoder/rebuild.sh"} <= {*exported.extras}
    line = (folder / "decoder" / "run.sh").read_text().splitlines()[-1]
    shapes = dict(one.split(":") for one in shlex.split(line)[-1].removeprefix("--shapes=").split(","))
    assert shapes["input_ids"] == "1x1"  # a token after a text, with all of a source in the cache
    assert shapes["past_key_values.0.decoder.key"] == "1x4x127x16"
    assert shapes["past_key_values.0.encoder.key"] == "1x4x128x16"
    tool = tmp_path / "tensorrt_rtx"
    tool.write_text('#!/bin/sh\necho "$(basename "$PWD")" "$1"\n')
    tool.chmod(0o755)
    asked = {"env": {"PATH": f"{tmp_path}:/usr/bin:/bin"}, "capture_output": True, "text": True, "check": True}
    assert subprocess.run(["sh", folder / "run.sh"], **asked).stdout.splitlines() == [
        f"{half} --loadEngine=model.plan" for half in HALVES
    ]
    built = subprocess.run(["sh", folder / "rebuild.sh"], **asked).stdout.splitlines()
    assert built == [f"{half} --onnx=model.onnx" for half in HALVES]


def test_tensorrts_own_graphs_without_an_engine(artifacts):
    _, folder, exported = artifacts("Bart", "fp16", TENSORRT_TARGET, engine=False)
    assert exported.weights == ("encoder/model.onnx", "decoder/model.onnx")
    assert exported.build["built_by"] is None
    assert exported.build["parsed"] is True
    with TENSORRT_TARGET.open(folder, 1) as graph:
        assert graph.untimed == "no engine was built (--no-tensorrt-engine)"


def test_rows_pass_and_what_is_broken_fails_its_gate(tmp_path, run_cli):
    model = made.checkpoint(tmp_path / "model", "Bart")
    for name, first in (("text", 0), ("calib", 120)):
        (tmp_path / name).write_text(made.text(first=first))
    texts = {"eval_text": tmp_path / "text", "calib_text": tmp_path / "calib"}
    options = {"tensorrt-rtx": {"compute_capability": ["sm89"]}}
    targets = ("tensorrt-rtx:fp32", "tensorrt-rtx:int8")
    report = run(Job(model=str(model), target=targets, output=tmp_path / "out", **SMALL, **texts, **options))
    rows = {row["precision"]: row for row in report["results"] if row["target"] == "tensorrt-rtx"}
    for row in rows.values():
        assert (row["status"], [gate for gate in row["gates"] if not gate["passed"]]) == ("ok", []), row["reason"]
        assert {"max_ppl_ratio", "max_kl", "min_cosine", "max_cache_kl"} <= {gate["name"] for gate in row["gates"]}
        assert row["speed"]["untimed"] == "no CUDA device"
    assert rows["int8"]["build"]["engine"]["int8_share"] == 1.0
    assert rows["int8"]["build"]["engine"]["layers"]["by_precision"]["Int8"] > 10
    assert value(rows["int8"], "cosine") < value(rows["fp32"], "cosine")
    page = (tmp_path / "out" / "tensorrt-rtx-fp32" / "README.md").read_text()
    assert "sources of `1:128:512` tokens and targets of `1:128:512`" in page
    assert "There is none here yet" not in page

    whole = tmp_path / "out" / "tensorrt-rtx-fp32"
    shutil.copytree(whole, tmp_path / "kept")

    def measured(half, change):
        graph = onnx.load(tmp_path / "kept" / half / "model.onnx")
        change(graph.graph)
        onnx.save(graph, whole / half / "model.onnx")
        done = run_cli("bench", tmp_path / "out", "--format", "json")
        shutil.copy(tmp_path / "kept" / half / "model.onnx", whole / half / "model.onnx")
        assert done.returncode == 3, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])["results"]
        [row] = [one for one in found if (one["target"], one["precision"]) == ("tensorrt-rtx", "fp32")]
        return {gate["name"] for gate in row["gates"] if not gate["passed"]}

    def louder(graph):
        [weight] = [one for one in graph.initializer if one.name == "layers.0.fc1.weight"]
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.5, weight.name))

    def forgets(graph):  # the decoder's cache of its own tokens, where it goes in
        for node in graph.node:
            for place, name in enumerate(node.input):
                if name == "past_key_values.1.decoder.key":
                    node.input[place] = "past_key_values.0.decoder.key"

    assert {"min_cosine", "max_kl"} <= measured("encoder", louder)
    assert "max_cache_kl" in measured("decoder", forgets)


def test_a_half_that_cannot_be_built_is_named(artifacts):
    with pytest.raises(BuildError, match=r"^the encoder: tensorrt-rtx .* could not build the engine") as failure:
        artifacts("T5", "bf16", workspace="1K")
    assert failure.value.build["built_by"] is None


def test_profiles_of_sources(artifacts):
    profile = Profile.parse("batch=1:1:4,length=1:8:32,source=1:16:64")
    profile.check(TEXT2TEXT, 32, "--x")
    with pytest.raises(JobError, match="reads no source"):
        profile.check(GENERATION, 32, "--x")
    with pytest.raises(JobError, match="greatest length"):
        profile.check(TEXT2TEXT, 64, "--x")
    with pytest.raises(JobError, match="greatest source"):
        Profile.parse("batch=1:1:4,length=1:8:64,source=1:16:32").check(TEXT2TEXT, 64, "--x")
    with pytest.raises(JobError, match="source must begin at 1"):
        Profile.parse("batch=1:1:4,length=1:8:64,source=2:16:64").check(TEXT2TEXT, 64, "--x")
    with pytest.raises(JobError, match="must begin at 1"):
        Profile.parse("batch=2:2:4,length=1:8:64").of(TEXT2TEXT).check(TEXT2TEXT, 64, "--x")
    assert TENSORRT_TARGET.check({"is_encoder_decoder": True}, "text-classification", "fp16") is not None
    assert "hear" in TENSORRT_TARGET.check({"is_encoder_decoder": True}, "automatic-speech-recognition", "fp16")


@pytest.mark.gpu
def test_engines_on_a_device(tmp_path):
    """Both engines' own answers against those of torch, padded and through the caches."""
    model = made.checkpoint(tmp_path / "model", "T5")
    platform = "tensorrt" if known.unavailable(Variant("tensorrt", "fp16")) is None else "tensorrt-rtx"
    (tmp_path / "text").write_text(made.text())
    run(Job(model=str(model), target=f"{platform}:fp16", output=tmp_path / "out", eval_text=tmp_path / "text", **SMALL))
    rng = np.random.default_rng(0)
    ids, wanted = rng.integers(4, 250, 40), rng.integers(4, 250, 30)
    folder = tmp_path / "out" / f"{platform}-fp16"
    with open_checkpoint(model, TEXT2TEXT, 1) as own, known.get(platform).open_cuda(folder, 1, 0) as engines:
        assert engines.engine.startswith(f"{platform} ")
        assert not isinstance(engines, StandInRunner)
        np.testing.assert_allclose(engines.encode(ids), own.encode(ids), atol=0.1)
        expected = own.logits(wanted)
        np.testing.assert_allclose(engines.logits(wanted), expected, atol=0.1)
        steps = [engines.prefill(wanted[:7]), *(engines.step(int(token)) for token in wanted[7:])]
        np.testing.assert_allclose(np.stack(steps), expected[6:], atol=0.1)
        sources, mask = rng.integers(4, 250, (10, 13)), np.ones((10, 13), np.int64)
        mask[1, 6:], wanted = 0, rng.integers(4, 250, (10, 8))
        np.testing.assert_allclose(engines.paired(sources, mask, wanted), own.paired(sources, mask, wanted), atol=0.1)
        assert engines.device_ms > 0
