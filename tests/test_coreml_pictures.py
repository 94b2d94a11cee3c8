"""Core ML: models of pictures, converted and evaluated; five families, every precision, one broken on purpose."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import vision_models
from picture_artifacts import answers_alike, exported, made_in, missed

from exporter.errors import JobError
from exporter.form import IMAGE_FEATURES, IMAGES
from exporter.targets.coreml.opened import open_package
from exporter.targets.coreml.target import COREML
from exporter.types import Preparation

pytest.importorskip("coremltools", reason="needs the extra [coreml]")
ALL = tuple(f"coreml:{name}" for name in COREML.precisions)
STATIC = ("coreml:int8-static",)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return made_in(tmp_path_factory.mktemp("coreml-pictures"))


@pytest.mark.parametrize("family", ["DeiT", "Swin", "ResNet"])
def test_family(family, tmp_path):
    model, folder = exported(COREML, tmp_path, family, IMAGES)
    answers_alike(COREML.open(folder, 1), model, IMAGES, 1e-5)


def test_states_of_pictures(tmp_path):
    """Of a convolutional model, whose answer has height and width."""
    model, folder = exported(COREML, tmp_path, "ConvNext", IMAGE_FEATURES)
    answers_alike(COREML.open(folder, 1), model, IMAGE_FEATURES, 1e-5)


def test_every_precision(made):
    model, out, rows = made("ViT", ALL)
    answers_alike(COREML.open(out / "coreml-fp32", 1), model, IMAGES, 1e-5)
    for name in ALL:
        row = rows[name]
        assert {"max_kl", "min_top1", "max_processor_error"} <= {gate["name"] for gate in row["gates"]}
        if "int8" in name:
            # Matrices of fewer than 2,048 numbers, such as the head's, stay in float.
            assert row["artifact"]["named_share"] > 0.99
            assert row["quality"]["kl"]["value"] > 0


def test_convolutions_have_8_bits_and_rounded_inputs(made):
    """All that are not small; normalizations are in their weights."""
    _, out, rows = made("ResNet", STATIC)
    [function] = COREML.inspects[".mlpackage"](out / "coreml-int8-static/model.mlpackage")["functions"]
    assert "batch_norm" not in function["operators"]
    assert function["operators"]["quantize"] > 3
    assert rows["coreml:int8-static"]["artifact"]["named_share"] > 0.5


def test_a_broken_weight_fails_its_gates(made, tmp_path):
    _, out, _ = made("ViT", ALL)
    shutil.copytree(out / "coreml-fp32/model.mlpackage", tmp_path / "broken.mlpackage")
    [weights] = (tmp_path / "broken.mlpackage").rglob("weight.bin")
    numbers = np.fromfile(weights, np.uint8)
    third = len(numbers) // 3 // 64 * 64
    numbers[third : third + 4096] = numbers[third + 4096 : third + 8192].copy()
    numbers.tofile(weights)
    broken = open_package(tmp_path / "broken.mlpackage", IMAGES, 1, half=False)
    assert {"max_kl", "max_logit_error"} <= missed(broken, COREML.precisions["fp32"], out / "reference", IMAGES)


def test_what_is_not_of_pictures_is_refused(tmp_path):
    model = vision_models.checkpoint(tmp_path / "model", "ResNet")

    def prepared(precision, **options):
        asked = COREML.options(**options)
        return COREML.prepare(Preparation(model, {}, IMAGES, precision, asked, tmp_path, True, 3, 10**6))

    with pytest.raises(JobError, match="--coreml-max-length is for models of texts"):
        prepared("fp16", max_length=64)
    for precision in ("int4", "palettize4", "palettize6"):
        assert "are convolutions'" in prepared(precision)
    assert prepared("int8-static") is None
