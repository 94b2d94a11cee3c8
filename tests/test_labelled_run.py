"""Labelled data, a model's own pooling and samples through the whole program, on small random checkpoints."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from report_schema import complaints
from test_embedding import CLS, folder
from test_encoders import SIZES, tokenizer

from exporter import Job, run
from exporter.measure.labels import PAIRS, Labels
from exporter.pipeline.again import bench_again

pytest.importorskip("sklearn", reason="scikit-learn of the extra [data] is not installed")

NAMES = ("anger", "joy", "fear")


def random_words(count: int) -> str:
    return " ".join(f"word{random.randrange(180)}" for _ in range(count))


def random_bert(kind: str, place: Path, **more) -> torch.nn.Module:
    torch.manual_seed(0)
    model = getattr(transformers, kind)(transformers.BertConfig(**SIZES, **more)).eval()
    with torch.no_grad():  # the usual initialization makes all texts alike
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.15)
    model.save_pretrained(place)
    tokenizer(place, 500)
    return model


@pytest.fixture(scope="module")
def classified(tmp_path_factory):
    """A classifier of pairs, its labelled data (its own answers, some of them changed), and a run."""
    place = tmp_path_factory.mktemp("classified")
    random.seed(0)
    names = {"id2label": dict(enumerate(NAMES)), "label2id": {name: number for number, name in enumerate(NAMES)}}
    model = random_bert("BertForSequenceClassification", place / "model", num_labels=3, **names)
    settings = json.loads((place / "model" / "tokenizer.json").read_text())
    pair = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair += [{"SpecialToken": {"id": "[SEP]", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]
    settings["post_processor"]["pair"] = [*pair, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}]
    (place / "model" / "tokenizer.json").write_text(json.dumps(settings))
    told = json.loads((place / "model" / "tokenizer_config.json").read_text())
    told["model_input_names"] = ["input_ids", "attention_mask", "token_type_ids"]
    (place / "model" / "tokenizer_config.json").write_text(json.dumps(told))
    words = transformers.AutoTokenizer.from_pretrained(place / "model")
    rows = []
    for number in range(40):
        both = random_words(6), random_words(5)
        told = words(*both, return_tensors="pt")
        with torch.no_grad():
            decided = int(model(**told).logits.argmax())
        rows.append({"premise": both[0], "hypothesis": both[1], "label": NAMES[(decided + (number % 5 == 0)) % 3]})
    assert told["token_type_ids"].any()
    (place / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = run(Job(
        model=str(place / "model"), target=("onnx:fp32", "onnx:int8-dynamic"), output=place / "out", speed=False,
        eval_data=place / "data.jsonl", max_accuracy_drop=0.5, max_f1_drop=0.001, threads=1,
    ))  # fmt: skip
    return place, report


def test_reference_and_artifact_are_scored_on_the_same_pairs(classified):
    _, report = classified
    assert list(complaints(report)) == []
    reference, fp32, _ = report["results"]
    assert reference["quality"]["accuracy"]["value"] == 0.8  # eight of forty labels were changed
    assert fp32["quality"]["accuracy"]["value"] == 0.8  # its graph is told which text is which
    assert fp32["quality"]["kl"]["value"] < 1e-8
    assert reference["quality"]["accuracy_drop"] == {"value": 0.0, "se": None, "detail": None}
    gates = {gate["name"]: gate for gate in fp32["gates"]}
    assert gates["max_accuracy_drop"]["passed"]
    assert not gates["max_f1_drop"]["passed"]  # forty examples cannot prove a tenth of a point
    assert report["exit_status"] == 3
    assert report["evaluation"]["data"] == {
        "file": "data.jsonl", "examples": 40, "kind": "single_label_classification", "labels": "names", "cut": 0,
        "columns": {"text": "premise", "pair": "hypothesis", "label": "label"}, "note": None,
        "guessed": ["text", "pair", "label"],
    }  # fmt: skip
    assert fp32["samples"] == {"kind": "labels", "changed": 0, "of": 40, "shown": []}


def test_bench_scores_them_again_without_the_file(classified):
    place, report = classified
    (place / "data.jsonl").unlink()
    again = bench_again(place / "out", 1)
    for old, new in zip(report["results"], again["results"], strict=True):
        assert new["quality"]["accuracy"] == old["quality"]["accuracy"]
        assert new["quality"]["f1_drop"] == old["quality"]["f1_drop"]
        assert new["samples"] == old["samples"]
    assert again["evaluation"]["data"]["examples"] == 40


def test_embeddings_are_pooled_as_the_model_says_and_its_modules_travel(tmp_path):
    random.seed(1)
    model = random_bert("BertModel", tmp_path)
    weights = {"linear.weight": np.random.default_rng(2).normal(0, 1, (16, 64)).astype(np.float32)}
    folder(tmp_path, CLS, "Dense", "Normalize", weights=weights)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path)

    def vector(text: str) -> np.ndarray:
        with torch.no_grad():
            state = model(**words(text, return_tensors="pt")).last_hidden_state[0, 0].numpy()
        whole = np.tanh(weights["linear.weight"] @ state)
        return whole / np.linalg.norm(whole)

    pairs = [(random_words(5), random_words(7)) for _ in range(12)]
    cosines = [float(vector(a) @ vector(b)) for a, b in pairs]
    with (tmp_path / "pairs.csv").open("w") as file:
        file.write("sentence1,sentence2,score\n")
        file.writelines(f"{a},{b},{cosine * 5}\n" for (a, b), cosine in zip(pairs, cosines, strict=True))
    report = run(Job(
        model=str(tmp_path), target=("onnx:fp32",), output=tmp_path / "out", speed=False, threads=1,
        eval_data=tmp_path / "pairs.csv", max_spearman_drop=0.05,
    ))  # fmt: skip
    reference, fp32 = report["results"]
    assert reference["quality"]["label_spearman"]["value"] == pytest.approx(1.0)  # by the mean it would not be
    assert fp32["quality"]["label_spearman"]["value"] == pytest.approx(1.0)
    assert report["evaluation"]["pooling"] == "cls_token, Dense (Tanh), Normalize"
    assert Labels.load(tmp_path / "out" / "reference" / "labels.npz").kind == PAIRS
    artifact = tmp_path / "out" / "onnx-fp32"
    assert (artifact / "2_Dense" / "model.safetensors").read_bytes() == (
        tmp_path / "2_Dense" / "model.safetensors"
    ).read_bytes()
    manifest = json.loads((artifact / "manifest.json").read_text())
    assert "2_Dense/model.safetensors" in manifest["weights"]
    assert {"modules.json", "1_Pooling/config.json"} <= set(manifest["files"])


def test_a_decoder_continues_side_by_side(tmp_path, tiny):
    report = run(Job(
        model=str(tiny), target=("onnx:fp32",), output=tmp_path / "out", speed=False, threads=1, eval_tokens=64,
        window=32, sample=("The name of the", "If the value"), min_top1=0.5,
    ))  # fmt: skip
    reference, fp32 = report["results"]
    assert [one["input"] for one in fp32["samples"]["shown"]] == [["The name of the"], ["If the value"]]
    assert (fp32["samples"]["kind"], fp32["samples"]["changed"], fp32["samples"]["of"]) == ("continuations", 0, 2)
    tokens = transformers.AutoTokenizer.from_pretrained(tiny)
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    ids = tokens("If the value", return_tensors="pt")
    expected = model.generate(**ids, max_new_tokens=48, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokens.encode(fp32["samples"]["shown"][1]["answer"], add_special_tokens=False)[:8] == expected[:8].tolist()
    assert "What a person would try" in (tmp_path / "out" / "report.html").read_text()
    assert reference["samples"]["shown"][0]["answer"] == fp32["samples"]["shown"][0]["answer"]
