"""CLIP through the whole program: pictures matched with texts, both towers exported, opened, and broken on purpose."""

from __future__ import annotations

import json
import shutil

import clip_models
import numpy as np
import onnx
import pytest
import torch
import transformers
from clients import client, node
from onnx import numpy_helper
from PIL import Image
from test_client_defaults import in_node

from exporter import Job, run
from exporter.checkpoint.inspection import inspect
from exporter.checkpoint.opened import open_checkpoint
from exporter.checkpoint.pictures import draw
from exporter.checkpoint.processor import read_processor
from exporter.errors import JobError
from exporter.form import FEATURES, IMAGES, ZERO_SHOT
from exporter.measure.gates import judge
from exporter.measure.probe import compare_probe
from exporter.measure.quality import ANSWERS, Reference
from exporter.pipeline.candidates import evaluation_labels
from exporter.pipeline.inputs import check_inputs
from exporter.pipeline.pictures import with_texts
from exporter.report.result import Result
from exporter.report.table import value
from exporter.targets.known import BUILTIN
from exporter.targets.onnx.two_towers import FILES
from exporter.targets.onnx_graph.two_towers import trace_towers
from exporter.targets.onnx_graph.two_towers_session import open_towers
from exporter.tasks.known import compare
from exporter.tasks.zero_shot_image_classification import TEXTS, padded
from exporter.types import Checkpoint

node = node
PRECISIONS = ("fp32", "bf16", "int8-weight", "int8-dynamic", "int4-weight")
LABELS = ("a dog", "the sea at night, and a circle with a bird", "a photo of the cat", "é ü 日本")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(checkpoint, output folder, report) of a run of most precisions; `few` has the others."""
    place = tmp_path_factory.mktemp("clip")
    model = clip_models.checkpoint(place / "model")
    job = Job(
        # A random model's texts lie close together, which is hard on the choice among 32 of them.
        model=str(model), output=place / "out", threads=1, speed=False, min_top1=0.4,
        target=(*(f"onnx:{one}" for one in PRECISIONS), "torch:bf16", "torch:fp16"),
    )  # fmt: skip
    return model, place / "out", run(job)


@pytest.fixture(scope="module")
def few(made, tmp_path_factory):
    """(output folder, report) of a run on a user's own texts."""
    place = tmp_path_factory.mktemp("few")
    (place / "texts.txt").write_text("\n".join([*LABELS, "", LABELS[0]]), encoding="utf-8")
    job = Job(
        model=str(made[0]), output=place / "out", threads=1, speed=False, repeats=1, eval_labels=place / "texts.txt",
        target=("onnx:fp32", "onnx:fp16"),
    )  # fmt: skip
    return place / "out", run(job)


def rows_of(report):
    return {f"{row['target']}:{row['precision']}": row for row in report["results"]}


def test_every_precision_keeps_its_gates(made):
    _, out, report = made
    rows = rows_of(report)
    assert report["model"]["task"] == ZERO_SHOT
    assert {row["status"] for row in rows.values()} == {"ok"}, [row["reason"] for row in rows.values()]
    assert report["passed"], [gate for row in rows.values() for gate in row["gates"] if not gate["passed"]]
    assert report["evaluation"]["text"] == f"64 drawn pictures, each with {len(TEXTS)} texts"
    for name, row in rows.items():
        if name == "torch:fp32":
            continue
        assert {"max_kl", "min_top1", "min_cosine", "max_processor_error"} <= {gate["name"] for gate in row["gates"]}
        assert value(row, "cosine") == min(value(row, "picture_cosine"), value(row, "text_cosine"))
        assert row["artifact"]["named_share"] is None or row["artifact"]["named_share"] > 0.9
    for name in ("kl", "cosine"):
        exact, eight, four = (value(rows[f"onnx:{one}"], name) for one in ("fp32", "int8-weight", "int4-weight"))
        assert (exact < eight < four) if name == "kl" else (exact > eight > four)
    assert "by the precision's rule" in rows["onnx:int4-weight"]["reason"]
    assert rows["onnx:fp32"]["samples"]["of"] == 64
    # The weights are in an artifact once, and each of its files counts.
    folder, numbers = out / "onnx-fp32", rows["torch:fp32"]["artifact"]["bytes"]
    assert sum((folder / name).stat().st_size for name in FILES) == rows["onnx:fp32"]["artifact"]["bytes"]
    assert 0.9 * numbers < sum((folder / name).stat().st_size for name in FILES[-2:]) < 1.01 * numbers
    stored = Reference.load(out / "reference" / ANSWERS)
    lengths = {len(stored.passages.source(number)) for number in range(len(TEXTS))}
    assert len(lengths) > 8
    assert max(lengths) == clip_models.POSITIONS
    assert stored.probe.source_mask.sum(1).max() == clip_models.POSITIONS > stored.probe.source_mask.sum(1).min()


@pytest.mark.parametrize("legacy", [False, True])
def test_both_towers_as_its_own_code_at_other_sizes_than_traced(legacy, made, tmp_path):
    model = clip_models.checkpoint(tmp_path / "model", legacy=legacy) if legacy else made[0]
    folder = tmp_path if legacy else made[1] / "onnx-fp32" / "onnx"
    if legacy:
        trace_towers(model, folder)
    words = transformers.AutoTokenizer.from_pretrained(model)
    rng = np.random.default_rng(0)
    with open_checkpoint(model, ZERO_SHOT, 1) as own, open_towers(folder, 1) as graph:
        seen = []
        for texts, count in ((LABELS[:1], 1), (LABELS, 5), (["bird " * 40, *LABELS], 9)):
            # Its own tokenizer's padding, and transformers' whole forward, beside what runners are asked.
            told = words(list(texts), padding=True, truncation=True, return_tensors="pt")
            ids, mask = (told[name].numpy() for name in ("input_ids", "attention_mask"))
            expected_ids, expected_mask = padded([row[kept == 1] for row, kept in zip(ids, mask, strict=True)])
            assert (ids == expected_ids).all()
            assert (mask == expected_mask).all()
            pixels = rng.normal(size=(count, 3, clip_models.SIDE, clip_models.SIDE)).astype(np.float32)
            for runner in (own, graph):
                runner.match(ids, mask)
            with torch.no_grad():
                whole = own._model(**told, pixel_values=torch.from_numpy(pixels))
            got = graph.batch(pixels, np.ones((count, 3), np.int64))
            np.testing.assert_allclose(got, whole.logits_per_image, atol=1e-4)
            np.testing.assert_allclose(graph.logits(pixels[0]), whole.logits_per_image[:1], atol=1e-4)
            for vectors, unit in (
                (graph.texts(ids, mask), whole.text_embeds), (graph.pictures(pixels), whole.image_embeds),
            ):  # fmt: skip
                np.testing.assert_allclose(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), unit, atol=1e-5)
            np.testing.assert_allclose(graph.texts(ids, mask), own.texts(ids, mask), atol=1e-4)
            np.testing.assert_allclose(graph.pictures(pixels), own.pictures(pixels), atol=1e-4)
            seen.append(graph.texts(ids, mask)[-1])
        alone = words(LABELS[-1], return_tensors="np")["input_ids"]
        np.testing.assert_allclose(graph.texts(alone, np.ones_like(alone))[0], seen[-1], atol=1e-4)


def test_what_is_broken_fails_its_gates(few, tmp_path, run_cli):
    """The tower of texts in one artifact, that of pictures in another."""
    out = tmp_path / "out"
    shutil.copytree(few[0], out)
    for folder, name, weight in (
        ("onnx-fp32", "text_model.onnx", "text_model.final_layer_norm.bias"),
        ("onnx-fp16", "vision_model.onnx", "vision_model.post_layernorm.bias"),
    ):
        graph = onnx.load(out / folder / "onnx" / name, load_external_data=False)
        [tensor] = [one for one in graph.graph.initializer if one.name == weight]
        tensor.CopyFrom(numpy_helper.from_array(1 - numpy_helper.to_array(tensor), weight))
        onnx.save(graph, out / folder / "onnx" / name)
    done = run_cli("bench", out, "--format", "json")
    assert done.returncode == 3, done.stderr
    rows = rows_of(json.loads(done.stdout.splitlines()[-1]))
    failed = {name: {gate["name"] for gate in row["gates"] if not gate["passed"]} for name, row in rows.items()}
    assert failed["onnx:fp32"] == failed["onnx:fp16"] == {"min_cosine"}  # the joint graph's own nodes are whole
    assert value(rows["onnx:fp32"], "text_cosine") < 0.9 < value(rows["onnx:fp32"], "picture_cosine")
    assert value(rows["onnx:fp16"], "picture_cosine") < 0.9 < value(rows["onnx:fp16"], "text_cosine")
    for row in rows.values():  # of a picture among the texts
        assert set(row["speed"]["latency_ms"]) == {"picture", "pictures_8"}


def test_the_joint_graph_is_judged_by_itself(few, tmp_path):
    out = few[0]
    shutil.copytree(out / "onnx-fp32", tmp_path / "broken")
    file = tmp_path / "broken" / "onnx" / "model.onnx"
    graph = onnx.load(file, load_external_data=False)
    [scale] = [one for one in graph.graph.initializer if one.name == "logit_scale"]
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) - 1, "logit_scale"))
    onnx.save(graph, file)
    reference, row = Reference.load(out / "reference" / ANSWERS), Result("onnx", "fp32")
    with open_towers(file.parent, 1) as runner:
        row.quality |= compare_probe(runner, reference.probe, ZERO_SHOT) | compare(runner, reference)[0]
    gates = judge(BUILTIN["onnx"].precisions["fp32"].limits(ZERO_SHOT), row, frozenset(), 64, "picture")
    assert {gate.name for gate in gates if not gate.passed} == {"max_kl", "max_logit_error"}


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    file = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.fromarray(draw(np.random.default_rng(5))).save(file)
    return file


@pytest.fixture(scope="module")
def scores(made, picture):
    """What transformers makes of a picture and LABELS."""
    model = made[0]
    pixels = read_processor(model, trust=False)(images=[Image.open(picture)], return_tensors="pt")["pixel_values"]
    told = transformers.AutoTokenizer.from_pretrained(model)(list(LABELS), padding=True, return_tensors="pt")
    with torch.no_grad():
        own = transformers.CLIPModel.from_pretrained(model)
        return dict(zip(LABELS, own(**told, pixel_values=pixels).logits_per_image[0].softmax(-1).tolist(), strict=True))


@pytest.mark.parametrize("variant", ["onnx-int8-dynamic", "torch-bf16"])
def test_the_program_beside_an_artifact_answers_as_the_model(made, picture, scores, variant):
    got = json.loads(client(made[1] / variant, picture, *LABELS))
    assert got == pytest.approx(scores, abs=0.05)
    assert [*got.values()] == sorted(got.values(), reverse=True)


def test_transformers_js_opens_the_folder_and_each_tower(node, made, picture, scores, tmp_path):
    folder = made[1] / "onnx-fp32"
    got = json.loads(client(folder, picture, *LABELS, file="run.mjs"))
    assert got == pytest.approx(scores, abs=0.1)  # its resizing is sharp's, not Pillow's
    body = """
    const { CLIPTextModelWithProjection, CLIPVisionModelWithProjection, Tensor } =
        await import("@huggingface/transformers");
    const [name, ...texts] = process.argv.slice(1);
    const told = (await AutoTokenizer.from_pretrained(name))(texts, { padding: true, truncation: true });
    const vectors = {};
    vectors.texts = (await (await CLIPTextModelWithProjection.from_pretrained(name))(told)).text_embeds.tolist();
    const vision = await CLIPVisionModelWithProjection.from_pretrained(name);
    const pixel_values = new Tensor("float32", new Float32Array(2 * 3 * 32 * 32).fill(0.5), [2, 3, 32, 32]);
    vectors.pictures = (await vision({ pixel_values })).image_embeds.tolist();
    // As in a browser, where a tower's data must be named: its graph is given from memory's copy of the file.
    const externalData = [{ path: "model.onnx_data", data: "onnx/model.onnx_data" }];
    const named = await CLIPTextModelWithProjection.from_pretrained(name, { session_options: { externalData } });
    vectors.again = (await named(told)).text_embeds.tolist();
    console.log(JSON.stringify(vectors));
    """
    found = in_node(body, folder, *LABELS)
    told = transformers.AutoTokenizer.from_pretrained(made[0])(list(LABELS), padding=True, return_tensors="np")
    with open_checkpoint(made[0], ZERO_SHOT, 1) as own:
        texts = own.texts(told["input_ids"], told["attention_mask"])
        seen = own.pictures(np.full((2, 3, 32, 32), 0.5, np.float32))
    np.testing.assert_allclose(found["texts"], texts, atol=1e-4)
    np.testing.assert_allclose(found["again"], texts, atol=1e-4)
    np.testing.assert_allclose(found["pictures"], seen, atol=1e-4)


def test_a_users_own_texts_are_what_pictures_are_matched_with(few):
    out, report = few
    assert report["passed"], [row["gates"] for row in report["results"]]
    assert report["evaluation"]["text"] == "64 drawn pictures, each with 4 texts"
    stored = Reference.load(out / "reference" / ANSWERS)
    assert stored.answers.vectors.shape == (64, 4)
    assert stored.answers.towers.shape == (68, 32)


def test_what_cannot_be_is_refused_before_work(made, run_here, tmp_path):
    done = run_here("run", "-m", made[0], "-o", tmp_path / "no", "-t", "torch:int8-dynamic")
    assert done.returncode == 4
    assert "CLIP's logit_scale" in done.stderr
    for target, precision, why in (
        ("torch", "int8-static", "reads texts and pictures"),
        ("onnx", "int8-static", "int8-dynamic finds them at run time"),
        ("gguf", "q8_0", "llama.cpp has programs for"),
        ("coreml", "fp16", "match pictures with texts are not exported to Core ML yet"),
        ("litert", "fp32", "match pictures with texts are not exported to LiteRT yet"),
        ("tensorrt", "fp16", "match pictures with texts are not exported to TensorRT yet"),
    ):
        assert why in BUILTIN[target].check({"model_type": "clip"}, ZERO_SHOT, precision)


def test_models_that_would_be_read_otherwise_are_refused(made, tmp_path):
    def refused(model):
        with pytest.raises(JobError) as raised:
            inspect(model.name, model, None, False, {}, None, True, model)
        return str(raised.value)

    for eos, finds in ((7, "the token 7"), (clip_models.SIZE - 2, f"the token {clip_models.SIZE - 2}")):
        folder = tmp_path / str(eos)
        shutil.copytree(made[0], folder)
        config = json.loads((folder / "config.json").read_text())
        config["text_config"]["eos_token_id"] = eos
        (folder / "config.json").write_text(json.dumps(config))
        assert f"finds a text's end by {finds}" in refused(folder)
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.SiglipConfig(text_config=small, vision_config={**small, "image_size": 32, "patch_size": 8})
    transformers.SiglipModel(config).save_pretrained(tmp_path / "siglip")
    assert "of CLIP alone, and siglip is a siglip" in refused(tmp_path / "siglip")


def test_texts_that_say_nothing_are_refused(made, tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("a dog\n\na dog\n")
    job = Job(model="clip", output=tmp_path, eval_labels=file)
    with pytest.raises(JobError, match="matched with at least 2"):
        evaluation_labels(job, ZERO_SHOT)
    with pytest.raises(JobError, match="--eval-labels is not for a model of texts"):
        check_inputs(job, FEATURES)
    with pytest.raises(JobError, match="--eval-labels is for a model that matches pictures with texts"):
        check_inputs(job, IMAGES)
    assert evaluation_labels(Job(model="clip", output=tmp_path), ZERO_SHOT) == TEXTS
    checkpoint = Checkpoint(made[0], ZERO_SHOT, "clip", "0" * 64, 0)
    passages = Reference.load(made[1] / "reference" / ANSWERS).passages
    long = "dog " * 30
    with pytest.raises(JobError, match=r"alike \(24 tokens\): leave one out"):
        with_texts(checkpoint, passages, (f"{long}cat", f"{long}sea"))
