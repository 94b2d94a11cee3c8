"""Models that make vectors of pictures: small random checkpoints through the whole program."""

from __future__ import annotations

import json

import numpy as np
import pytest
import vision_models
from clients import client
from PIL import Image

from exporter import Job, run
from exporter.checkpoint.opened import open_checkpoint
from exporter.checkpoint.pictures import draw
from exporter.form import IMAGE_FEATURES
from exporter.targets.onnx_graph.session import OnnxRunner
from exporter.tasks.image_features import vector_of


@pytest.mark.parametrize("family", ["ViT", "Swin", "ResNet"])
def test_family(family, tmp_path):
    model = vision_models.checkpoint(tmp_path / "model", family, "Model")
    job = Job(
        model=str(model), output=tmp_path / "out", threads=1, speed=False, policy="off",
        target=("torch:fp16", "onnx:fp32", "onnx:int8-static"),
    )  # fmt: skip
    report = run(job)
    rows = {f"{row['target']}:{row['precision']}": row for row in report["results"]}
    assert report["model"]["task"] == IMAGE_FEATURES
    assert report["passed"], [(row["reason"], row["gates"]) for row in rows.values()]
    for name in ("torch:fp16", "onnx:fp32", "onnx:int8-static"):
        judged = {gate["name"] for gate in rows[name]["gates"]}
        assert {"min_cosine", "max_processor_error"} <= judged
        assert 0.9 < rows[name]["quality"]["cosine"]["value"] <= 1
    assert rows["onnx:int8-static"]["quality"]["cosine"]["value"] < rows["onnx:fp32"]["quality"]["cosine"]["value"]
    pixels = vision_models.pictures(model, seed=7).numpy()[:5]
    with open_checkpoint(model, IMAGE_FEATURES, 1) as torch_model:
        expected = torch_model.batch(pixels, np.ones((5, 3), np.int64))
    assert expected.ndim == 3
    with OnnxRunner(tmp_path / "out/onnx-fp32/onnx/model.onnx", 1) as runner:
        assert np.abs(runner.batch(pixels, np.ones((5, 3), np.int64)) - expected).max() < 1e-3
        assert np.abs(runner.logits(pixels[1]) - expected[1:2]).max() < 1e-3
    file = tmp_path / "picture.png"
    Image.fromarray(draw(np.random.default_rng(5))).save(file)
    got = [np.array(json.loads(client(tmp_path / "out" / folder, file))) for folder in ("onnx-fp32", "torch-fp16")]
    assert len(got[0]) == expected.shape[-1]
    assert got[0] @ got[1] / np.linalg.norm(got[0]) / np.linalg.norm(got[1]) > 0.999


def test_the_state_of_the_whole_picture_is_its_vector_where_there_is_one():
    states = np.arange(130, dtype=np.float32).reshape(65, 2)
    assert np.array_equal(vector_of(states), states[0])  # 8 x 8 and CLS
    assert np.array_equal(vector_of(states[:51]), states[0])  # 7 x 7, CLS and the teacher's
    assert np.array_equal(vector_of(states[:64]), states[:64].mean(0))
    assert np.array_equal(vector_of(states[:1]), states[0])
