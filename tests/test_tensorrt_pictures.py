"""TensorRT: models of pictures as graphs with a free batch, by TensorRT-RTX's parser and builder, without a GPU."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import vision_models
from onnx import numpy_helper
from picture_artifacts import answers_alike, exported, made_in, missed

from exporter.form import IMAGE_FEATURES, IMAGES
from exporter.targets.tensorrt.platform import RTX, cannot_run
from exporter.targets.tensorrt.profile import Profile
from exporter.targets.tensorrt.stand_in import open_stand_in
from exporter.targets.tensorrt.target import RTX_TARGET
from exporter.types import Preparation

pytestmark = pytest.mark.usefixtures("tensorrt_rtx")
ALL = tuple(f"tensorrt-rtx:{name}" for name in RTX_TARGET.precisions)
INT8 = ("tensorrt-rtx:int8",)
GPU = {"tensorrt-rtx": {"compute_capability": ["sm89"]}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    if cannot_run(RTX) is None:
        pytest.skip("here the engine itself is measured: see the tests marked gpu")
    return made_in(tmp_path_factory.mktemp("tensorrt-pictures"))


@pytest.mark.parametrize("family", ["DeiT", "Swin", "ResNet"])
def test_family(family, tmp_path):
    """The graph alone, which its parser reads."""
    model, folder = exported(RTX_TARGET, tmp_path, family, IMAGES, engine=False)
    answers_alike(opened(folder), model, IMAGES, 1e-5)
    told = json.loads((folder / "profiles.json").read_text())["inputs"]
    assert told == {"pixel_values": {"min": [1, 3, 32, 32], "opt": [1, 3, 32, 32], "max": [8, 3, 32, 32]}}


def test_states_of_pictures(tmp_path):
    model, folder = exported(RTX_TARGET, tmp_path, "ConvNext", IMAGE_FEATURES, engine=False)
    answers_alike(opened(folder), model, IMAGE_FEATURES, 1e-5)


def opened(folder):
    profile = Profile.read((folder / "profiles.json").read_text())
    return open_stand_in(folder, 1, profile, IMAGES, "no engine was built")


def test_every_precision(made):
    model, out, rows = made("ViT", ALL, **GPU)
    answers_alike(opened(out / "tensorrt-rtx-fp32"), model, IMAGES, 1e-5)
    for name in ALL:
        row = rows[name]
        assert {"max_kl", "min_top1", "max_processor_error"} <= {gate["name"] for gate in row["gates"]}
        assert row["build"]["engine"]["parsed"] is True
        assert row["build"]["engine"]["engine_bytes"] == row["artifact"]["bytes"]
        [pixels] = onnx.load(out / name.replace(":", "-") / "model.onnx", load_external_data=False).graph.input
        assert pixels.type.tensor_type.elem_type == onnx.TensorProto.FLOAT  # as processors make them
        if "int8" in name:
            assert row["artifact"]["named_share"] == 1.0
    rebuild = (out / "tensorrt-rtx-fp16/rebuild.sh").read_text()
    assert "--maxShapes=pixel_values:8x3x32x32" in rebuild


def test_convolutions_compute_in_int8(made):
    """By the engine's own log, where each has its input and its weight behind a Q/DQ pair of int8."""
    _, out, rows = made("ResNet", INT8, **GPU)
    built = rows["tensorrt-rtx:int8"]["build"]["engine"]
    assert built["int8_share"] == 1.0
    graph = onnx.load(out / "tensorrt-rtx-int8/model.onnx", load_external_data=False).graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 14
    assert all([makers[one] for one in node.input[:2]] == ["DequantizeLinear"] * 2 for node in convolutions)
    assert built["layers"]["by_precision"]["Int8"] > 5


def test_a_broken_weight_fails_its_gates(made, tmp_path):
    _, out, _ = made("ViT", ALL, **GPU)
    graph = onnx.load(out / "tensorrt-rtx-fp32/model.onnx")
    [weight] = [one for one in graph.graph.initializer if one.name.endswith("patch_embeddings.projection.weight")]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[:, ::-1].copy(), weight.name))  # BGR
    onnx.save(graph, tmp_path / "model.onnx")
    for name in ("profiles.json", "manifest.json"):
        (tmp_path / name).write_text((out / "tensorrt-rtx-fp32" / name).read_text())
    gates = missed(opened(tmp_path), RTX_TARGET.precisions["fp32"], out / "reference", IMAGES)
    assert {"max_kl", "max_logit_error"} <= gates


def test_the_profile_of_pictures_is_their_batch(tmp_path):
    model = vision_models.checkpoint(tmp_path / "model", "ResNet")
    options = RTX_TARGET.options(profile="batch=2:2:4,length=1:1:1", engine=False)
    asked = Preparation(model, {}, IMAGES, "fp16", options, tmp_path, True, 224, 10**6)
    assert RTX_TARGET.prepare(asked) is None
    profile = Profile.parse(options.profile)
    seen = []

    def forward(pixels, mask):
        seen.append(len(pixels))
        return pixels.sum((2, 3))

    pixels = np.random.default_rng(0).normal(size=(5, 3, 4, 4)).astype(np.float32)
    got = profile.batched(pixels, np.ones((5, 3), np.int64), forward)
    assert seen == [4, 2]  # the last one filled up to the least
    np.testing.assert_allclose(got, pixels.sum((2, 3)))
