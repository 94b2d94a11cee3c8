"""LiteRT: models of pictures through the whole program, five families, every precision, one broken on purpose."""

from __future__ import annotations

import pytest
import vision_models
from litert_models import changed
from picture_artifacts import answers_alike, exported, made_in, missed, said

from exporter.errors import JobError
from exporter.form import IMAGE_FEATURES, IMAGES
from exporter.targets.litert.opened import open_file
from exporter.targets.litert.target import LITERT
from exporter.types import Preparation

pytest.importorskip("litert_torch", reason="needs the extra [litert]")
ALL = tuple(f"litert:{name}" for name in LITERT.precisions)
STATIC = ("litert:int8-static",)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return made_in(tmp_path_factory.mktemp("litert-pictures"))


@pytest.mark.parametrize("family", ["DeiT", "Swin", "ResNet"])
def test_family(family, tmp_path):
    model, folder = exported(LITERT, tmp_path, family, IMAGES)
    answers_alike(LITERT.open(folder, 1), model, IMAGES, 1e-5)


def test_states_of_pictures(tmp_path):
    """Of a convolutional model, whose answer has height and width."""
    model, folder = exported(LITERT, tmp_path, "ConvNext", IMAGE_FEATURES)
    answers_alike(LITERT.open(folder, 1), model, IMAGE_FEATURES, 1e-5)
    assert len(said(folder, tmp_path)) == 64


def test_every_precision(made):
    model, out, rows = made("ViT", ALL)
    answers_alike(LITERT.open(out / "litert-fp32", 1), model, IMAGES, 1e-5)
    for name in ALL:
        row = rows[name]
        assert {"max_kl", "min_top1", "max_processor_error"} <= {gate["name"] for gate in row["gates"]}
        assert row["artifact"]["engine"].endswith("XNNPACK")
        if "int8" in name:
            assert row["artifact"]["named_share"] == 1.0  # convolutions too
            assert row["quality"]["kl"]["value"] > 0
    # Smoothing leaves normalizations without a bias: what they scale by is not in the codes of the layers behind.
    assert "static inputs in 14 of 14 layers" in rows["litert:int8-static"]["reason"]


def test_convolutions_compute_in_int8(made):
    """Their normalizations are in their weights."""
    _, out, rows = made("ResNet", STATIC)
    [function] = LITERT.inspects[".tflite"](out / "litert-int8-static/model.tflite")["functions"]
    assert "static inputs in 15 of 15 layers" in rows["litert:int8-static"]["reason"]
    assert not {"MUL", "SUB", "RSQRT"} & function["operators"].keys()
    assert [one["shape"] for one in function["inputs"]] == [[1, 3, 32, 32]]


def test_its_program_answers_as_the_model(made, tmp_path):
    _, out, _ = made("ViT", ALL)
    scores = [said(out / name, tmp_path) for name in ("litert-fp32", "litert-int8-dynamic")]
    assert set(scores[0]) == {"ant", "bee", "cat", "dog", "elk", "fox"}
    assert sum(scores[0].values()) == pytest.approx(1)
    assert scores[1] == pytest.approx(scores[0], abs=0.05)


def test_a_broken_weight_fails_its_gates(made, tmp_path):
    _, out, _ = made("ViT", ALL)
    layer = "vit.embeddings.patch_embeddings.projection"
    changed(out / "litert-fp32/model.tflite", tmp_path / "broken.tflite", layer, lambda value: value[..., ::-1].copy())
    broken = open_file(tmp_path / "broken.tflite", IMAGES, 1)
    assert {"max_kl", "max_logit_error"} <= missed(broken, LITERT.precisions["fp32"], out / "reference", IMAGES)


def test_what_is_not_of_pictures_is_refused(tmp_path):
    model = vision_models.checkpoint(tmp_path / "model", "ResNet")

    def prepared(precision, parameters=10**6, **options):
        asked = LITERT.options(**options)
        return LITERT.prepare(Preparation(model, {}, IMAGES, precision, asked, tmp_path, True, 3, parameters))

    with pytest.raises(JobError, match="picture has the size that its processor makes"):
        prepared("fp32", lengths="64")
    with pytest.raises(JobError, match="--litert-bundle is for text generation"):
        prepared("fp32", bundle=True)
    assert "are convolutions'" in prepared("int4-weight")
    assert "at most" in prepared("fp32", 10**9)
    assert prepared("int8-static") is None
