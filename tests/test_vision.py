"""Models that classify pictures through the whole program: small random checkpoints of several families."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import vision_models
from clients import client, node  # noqa: F401  # a fixture
from onnx import numpy_helper
from PIL import Image

from exporter import Job, run
from exporter.checkpoint.model import load_model
from exporter.checkpoint.opened import open_checkpoint
from exporter.checkpoint.pictures import draw, drawn, listed, names, read, shared
from exporter.checkpoint.processor import picture_shape, read_processor
from exporter.errors import JobError
from exporter.form import IMAGES
from exporter.measure.gates import judge
from exporter.measure.preprocessing import FIGURE, PROCESSED, Processed
from exporter.measure.probe import compare_probe
from exporter.measure.quality import ANSWERS, Reference
from exporter.pipeline.inputs import PICTURES, calibration_list
from exporter.pipeline.pictures import processed
from exporter.quantization.hessians import hessians
from exporter.report.result import Result
from exporter.targets.onnx.target import ONNX
from exporter.targets.onnx_graph.session import OnnxRunner
from exporter.tasks.known import compare
from exporter.types import Checkpoint

TARGETS = {
    "ViT": (
        "torch:fp16",
        "torch:int8-dynamic",
        "torch:int8-static",
        "onnx:fp16",
        "onnx:int8-weight",
        "onnx:int8-dynamic",
    ),
    "ResNet": ("torch:bf16", "onnx:int8-weight", "onnx:int8-dynamic"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """made(family): the checkpoint, the output folder and the report of one run of it; each is made once."""
    done = {}

    def do(family):
        if family not in done:
            folder = tmp_path_factory.mktemp(family)
            model = vision_models.checkpoint(folder / "model", family)
            job = Job(
                model=str(model), output=folder / "out", threads=1, speed=family == "ViT", repeats=1, min_top1=0.8,
                policy="auto" if family == "ResNet" else "off",  # a search takes as long as all else
                target=("onnx:fp32", "onnx:int8-static", *TARGETS.get(family, ())),
            )  # fmt: skip
            done[family] = model, folder / "out", run(job)
        return done[family]

    return do


@pytest.mark.parametrize("family", vision_models.CONFIGS)
def test_family(family, made):
    _, out, report = made(family)
    rows = {f"{row['target']}:{row['precision']}": row for row in report["results"]}
    assert {row["status"] for row in rows.values()} == {"ok"}, [row["reason"] for row in rows.values()]
    assert report["passed"], [gate for row in rows.values() for gate in row["gates"] if not gate["passed"]]
    assert report["evaluation"]["text"] == "64 drawn pictures"
    assert report["evaluation"]["tokens_scored"] == 64
    for name, row in rows.items():
        if name == "torch:fp32":
            continue
        judged = {gate["name"] for gate in row["gates"]}
        assert {"max_kl", "min_top1", f"max_{FIGURE}"} <= judged, name
        assert row["quality"][FIGURE]["value"] == 0
        assert (out / row["path"] / "preprocessor_config.json").is_file()
        if row["precision"].startswith("int8"):
            assert row["artifact"]["named_share"] > 0.9
            assert row["quality"]["kl"]["value"] > 0  # it did round something
    static = rows["onnx:int8-static"]
    assert static["artifact"]["bytes"] < rows["onnx:fp32"]["artifact"]["bytes"]
    if family in ("ConvNext", "ResNet"):
        assert "QLinearConv" in static["reason"]
    if family == "ResNet":  # each normalization is in the scales of its convolution
        operators = {one.op_type for one in onnx.load(out / "onnx-int8-static/onnx/model.onnx").graph.node}
        assert "BatchNormalization" not in operators


@pytest.mark.parametrize("family", vision_models.CONFIGS)
def test_an_artifact_answers_batches_that_it_was_not_traced_at(family, made):
    model, out, _ = made(family)
    pixels = vision_models.pictures(model, seed=7).numpy()
    with open_checkpoint(model, IMAGES, 1) as torch_model:
        expected = torch_model.batch(pixels, np.ones((16, 3), np.int64))
    with OnnxRunner(out / "onnx-fp32/onnx/model.onnx", 1) as runner:
        for count in (1, 5, 16):
            got = runner.batch(pixels[:count], np.ones((count, 3), np.int64))
            assert np.abs(got - expected[:count]).max() < 1e-4
        assert np.abs(runner.logits(pixels[3]) - expected[3:4]).max() < 1e-4


def test_speed_is_of_pictures(made):
    rows = made("ViT")[2]["results"]
    for row in rows:
        assert row["speed"]["prefill_tokens_per_s"] is None
        assert {"picture", "pictures_8"} <= set(row["speed"]["latency_ms"])
        assert row["speed"]["pictures_per_s"] == pytest.approx(1000 / row["speed"]["latency_ms"]["picture"]["p50"])


def test_a_broken_weight_fails_its_gates(made, tmp_path):
    _, out, _ = made("ViT")
    shutil.copytree(out / "onnx-fp32", tmp_path / "broken")
    file = tmp_path / "broken/onnx/model.onnx"
    graph = onnx.load(file)
    [weight] = [
        one for one in graph.graph.initializer if one.name == "vit.embeddings.patch_embeddings.projection.weight"
    ]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[:, ::-1].copy(), weight.name))  # BGR
    onnx.save(graph, file)
    reference = Reference.load(out / "reference" / ANSWERS)
    row = Result("onnx", "fp32")
    with OnnxRunner(file, 1) as runner:
        row.quality |= compare_probe(runner, reference.probe, IMAGES)
        row.quality |= compare(runner, reference)[0]
    gates = judge(ONNX.precisions["fp32"].limits(IMAGES), row, frozenset(), 64, "picture")
    assert {"max_kl", "max_logit_error"} <= {gate.name for gate in gates if not gate.passed}


@pytest.mark.parametrize(
    "changed", [{"image_mean": [0.4, 0.5, 0.5]}, {"resample": 0}, {"size": {"height": 40, "width": 40}}]
)
def test_another_preprocessing_fails_its_gate(made, tmp_path, changed):
    model, out, _ = made("ViT")
    shutil.copytree(out / "onnx-fp32", tmp_path / "broken")
    settings = tmp_path / "broken/preprocessor_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | changed))
    checkpoint = Checkpoint(model, IMAGES, str(model), "0" * 64, 0)
    row = Result("onnx", "fp32")
    row.quality |= processed(tmp_path / "broken", checkpoint, Processed.load(out / "reference" / PROCESSED))
    [gate] = judge(ONNX.precisions["fp32"].limits(IMAGES), row, frozenset(), 64, "picture")
    assert (gate.name, gate.passed) == (f"max_{FIGURE}", False)


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "picture.png"
    Image.fromarray(draw(np.random.default_rng(5))).save(file)
    return file


@pytest.mark.parametrize("variant", ["onnx-fp32", "onnx-int8-static", "torch-fp16", "torch-int8-dynamic"])
def test_the_program_beside_an_artifact_answers_as_the_model(made, picture, variant):
    model, out, _ = made("ViT")
    expected = _scores(model, picture)
    got = json.loads(client(out / variant, picture))
    assert got.keys() == expected.keys()
    assert max(abs(got[name] - expected[name]) for name in got) < (0.05 if "int8" in variant else 0.005)


def test_a_static_artifact_of_torch_is_run_by_exporter(made, picture):
    _, out, _ = made("ViT")
    [logits] = json.loads(client(out / "torch-int8-static", picture))
    assert len(logits) == 6


def test_transformers_js_answers_as_the_model(made, picture, node):  # noqa: F811
    model, out, _ = made("ViT")
    expected, got = _scores(model, picture), json.loads(client(out / "onnx-fp32", picture, file="run.mjs"))
    assert got.keys() == expected.keys()
    # Its resizing is sharp's, not Pillow's.
    assert max(abs(got[name] - expected[name]) for name in got) < 0.1


def _scores(model: Path, picture: Path) -> dict[str, float]:
    processor = read_processor(model, trust=False)
    pixels = processor(images=[Image.open(picture)], return_tensors="np")["pixel_values"]
    with open_checkpoint(model, IMAGES, 1) as runner:
        [logits] = runner.batch(pixels, np.ones((1, 3), np.int64))
    powers = np.exp(logits - logits.max())
    named = json.loads((model / "config.json").read_text())["id2label"]
    return {named[str(at)]: float(power) for at, power in enumerate(powers / powers.sum())}


def test_folders_of_pictures_are_measured_and_calibrated_on(tmp_path, refused):
    model = vision_models.checkpoint(tmp_path / "model", "ViT")
    for name, seed in (("eval", 1), ("calib", 2)):
        (tmp_path / name).mkdir()
        for number in range(9):
            picture = Image.fromarray(draw(np.random.default_rng([seed, number])))
            picture.save(tmp_path / name / f"{number}.png")
    job = Job(
        model=str(model), output=tmp_path / "first", threads=1, speed=False, target=("onnx:fp32",),
        eval_images=tmp_path / "eval",
    )  # fmt: skip
    report = run(job)
    assert report["evaluation"]["text"] == "9 pictures of eval"
    assert report["evaluation"]["tokens_scored"] == 9
    shutil.copy(tmp_path / "eval/3.png", tmp_path / "calib/like3.png")
    with pytest.raises(JobError, match=r"shares pictures with what is measured on \(like3.png\)"):
        calibration_list(
            job.model_copy(update={"calib_images": tmp_path / "calib"}),
            PICTURES,
            listed(tmp_path / "eval", "--eval-images"),
        )
    (tmp_path / "eval/0.png").write_text("no picture")
    line = refused("-m", model, "-t", "onnx:fp32", "--eval-images", tmp_path / "eval")
    assert "0.png cannot be read as a picture" in line


def test_what_is_not_of_pictures_is_refused_before_work(tmp_path, refused, tiny):
    model = vision_models.checkpoint(tmp_path / "model", "ResNet")
    (tmp_path / "few").mkdir()
    assert "--eval-text is not for a model of pictures" in refused("-m", model, "--eval-text", __file__)
    assert "--eval-images is not for a model of texts" in refused("-m", tiny, "--eval-images", tmp_path / "few")
    assert "at least 8 are needed" in refused("-m", model, "--eval-images", tmp_path / "few")
    assert "--prune is not for" in refused("-m", model, "--prune", "magnitude:0.5")
    assert "llama.cpp" in refused("-m", model, "-t", "gguf", status=4)
    for variant in ("torch:int8-dynamic", "torch:int8-static", "onnx:int4-weight"):
        assert "are convolutions'" in refused("-m", model, "-t", variant, status=4)
    (model / "preprocessor_config.json").unlink()
    assert "has no preprocessor_config.json" in refused("-m", model)


def test_a_processor_of_another_size_is_refused(tmp_path, refused):
    model = vision_models.checkpoint(tmp_path / "model", "ViT")
    settings = model / "preprocessor_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"size": {"height": 48, "width": 48}}))
    assert "makes pictures of 3 x 48 x 48, and its config.json wants 3 x 32 x 32" in refused("-m", model)


def test_a_processor_that_keeps_a_pictures_shape_is_refused(tmp_path):
    model = vision_models.checkpoint(tmp_path / "model", "DeiT")
    settings = model / "preprocessor_config.json"
    told = json.loads(settings.read_text()) | {"do_center_crop": False, "do_resize": False}
    settings.write_text(json.dumps(told))
    with pytest.raises(JobError, match="pictures of several sizes"):
        picture_shape(read_processor(model, trust=False))


def test_gptq_sees_what_pictures_feed_a_layer(made):
    model, _, _ = made("ViT")
    loaded, pictures = load_model(model, IMAGES, "float32", False).eval(), vision_models.pictures(model)[:3]
    name, fed = "vit.layers.1.mlp.fc2", []
    layer = loaded.get_submodule(name)
    hook = layer.register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0].flatten(0, -2)))
    with torch.no_grad():
        loaded(pixel_values=pictures)
    hook.remove()
    [found] = hessians(loaded, pictures, [name], 1 << 20, lambda done, total: None)
    torch.testing.assert_close(found[name], fed[0].T @ fed[0])


def test_drawn_pictures_are_the_same_each_time_and_none_like_another():
    first, again, others = ([one.tobytes() for one in read(drawn(8, seed))] for seed in (0, 0, 1))
    assert first == again
    assert len({*first, *others}) == 16
    assert len(names(drawn(8, 0))) == 8
    assert shared(drawn(8, 0), drawn(8, 1)) is None
    assert shared(drawn(8, 0), drawn(8, 0)) == "the drawn pictures"
