"""The programs that travel with artifacts answer as the artifact does: each in a process of its own, Node's too."""

from __future__ import annotations

import json
import shutil

import clients
import numpy as np
import onnx
import pytest
import torch
import transformers
from clients import PROMPT, artifact, client, encoder, ids
from test_embedding import folder as with_modules

from exporter.measure.embedding import read_embedding
from exporter.measure.samples import greedy
from exporter.targets.onnx.layout import DATA, MODEL, configure
from exporter.targets.onnx.target import ONNX
from exporter.targets.onnx_graph.file import save_onnx
from exporter.targets.torch.target import TORCH
from exporter.types import CLASSIFICATION, FEATURES, GENERATION

node = clients.node
TEXTS = ["worda wordbs wordc.", "wordd", "WORDE wordf wordg wordh wordi wordj"]


def expected(target, folder, checkpoint):
    """What exporter's own runner adds to the prompt."""
    prompt = np.array(transformers.AutoTokenizer.from_pretrained(checkpoint)(PROMPT)["input_ids"], np.int64)
    ends = transformers.GenerationConfig.from_pretrained(checkpoint).eos_token_id
    with target.open(folder, 1) as runner:
        return greedy(runner, prompt, [ends], 24)


@pytest.fixture(scope="module")
def fused(tiny, tmp_path_factory):
    """An artifact of onnxruntime-genai's builder."""
    return artifact(ONNX, "int8-weight", tiny, GENERATION, tmp_path_factory.mktemp("fused") / "onnx-int8-weight")


@pytest.fixture(scope="module")
def traced(tiny, tmp_path_factory):
    """(checkpoint, artifact) of a decoder that the builder does not take, and whose graph asks for positions."""
    place = tmp_path_factory.mktemp("traced")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=2048, n_embd=64, n_layer=2, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(place / "gpt2")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny / name, place / "gpt2" / name)
    return place / "gpt2", artifact(ONNX, "fp32", place / "gpt2", GENERATION, place / "it's here" / "onnx-fp32")


def test_generation_by_genai_and_by_onnxruntime_alone(fused, tiny):
    tokens = expected(ONNX, fused, tiny)
    assert len(tokens) == 24
    assert ids(fused) == ids(fused, file="run_genai.py") == tokens
    text = transformers.AutoTokenizer.from_pretrained(tiny).decode(tokens)
    for file in ("run.py", "run_genai.py"):
        assert client(fused, PROMPT, "-n", 24, file=file) == text.strip()
        assert client(fused, file=file)  # with nothing said


def test_generation_from_a_traced_graph(traced):
    checkpoint, folder = traced
    assert ids(folder) == ids(folder, file="run_genai.py") == expected(ONNX, folder, checkpoint)


def test_the_program_of_a_client_that_cannot_open_a_folder_is_not_in_it(traced, tmp_path):
    assert "run_genai.py" in ONNX.programs(traced[1], GENERATION)
    for name in ("genai_config.json", "tokenizer.json"):
        folder = shutil.copytree(traced[1], tmp_path / name)
        (folder / name).unlink()
        assert set(ONNX.programs(folder, GENERATION)) == {"run.py", "run.mjs"}


def test_generation_in_node(node, fused, traced, tiny):
    tokens = expected(ONNX, fused, tiny)
    assert ids(fused, file="run.mjs") == tokens
    text = transformers.AutoTokenizer.from_pretrained(tiny).decode(tokens)
    assert client(fused, PROMPT, "-n", 24, file="run.mjs") == text.strip()
    checkpoint, folder = traced
    assert ids(folder, file="run.mjs") == expected(ONNX, folder, checkpoint)


def test_weights_in_a_file_of_their_own(node, traced, tmp_path):
    """As above 2 GB: model.onnx_data beside model.onnx."""
    checkpoint, folder = traced
    apart = shutil.copytree(folder, tmp_path / "apart")
    save_onnx(onnx.load(folder / MODEL), apart / MODEL, limit=0)
    assert (apart / DATA).stat().st_size > 100_000
    assert configure(checkpoint, apart) == (MODEL, DATA)
    tokens = expected(ONNX, folder, checkpoint)
    assert ids(apart) == ids(apart, file="run_genai.py") == ids(apart, file="run.mjs") == tokens


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    """The artifacts of one encoder: {"mean": …, "modules": …}, each (folder, vectors of TEXTS)."""
    place = tmp_path_factory.mktemp("embeddings")
    model, tokenizer = encoder("BertModel", place / "model")
    plain = artifact(ONNX, "fp32", place / "model", FEATURES, place / "mean")
    modules = shutil.copytree(plain, place / "modules")
    rng = np.random.default_rng(2)
    weights = {"linear.weight": rng.normal(0, 0.3, (8, 64)).astype(np.float32)}
    weights["linear.bias"] = rng.normal(0, 1, 8).astype(np.float32)
    both = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    with_modules(
        modules, both, "Dense", "Normalize", weights=weights, sentence_bert_config={"max_seq_length": 6},
        config_sentence_transformers={"prompts": {"query": "wordz "}, "default_prompt_name": "query"},
    )  # fmt: skip
    pooled = read_embedding(modules)
    assert pooled is not None

    def vector(text, limit):
        with torch.no_grad():
            out = model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=limit))
        return out.last_hidden_state[0].numpy()

    mean = [vector(text, 64).mean(0) for text in TEXTS]
    own = [pooled.vector(vector(pooled.read(text), pooled.max_length)) for text in TEXTS]
    return {"mean": (plain, mean), "modules": (modules, own)}


def vectors(folder, **more):
    return [json.loads(line) for line in client(folder, *TEXTS, **more).splitlines()]


@pytest.mark.parametrize("kind", ["mean", "modules"])
def test_embeddings(embeddings, kind):
    folder, wanted = embeddings[kind]
    np.testing.assert_allclose(vectors(folder), wanted, atol=1e-4)


@pytest.mark.parametrize("kind", ["mean", "modules"])
def test_embeddings_in_node(node, embeddings, kind):
    folder, wanted = embeddings[kind]
    np.testing.assert_allclose(vectors(folder, file="run.mjs"), wanted, atol=1e-4)


def test_a_module_that_is_not_known_is_told(embeddings, tmp_path):
    folder = shutil.copytree(embeddings["modules"][0], tmp_path / "odd")
    listed = json.loads((folder / "modules.json").read_text())
    listed[2]["type"] = "sentence_transformers.models.LSTM"
    (folder / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(AssertionError, match="has a LSTM, which this program does not know"):
        client(folder)


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    """Artifacts by problem type, each with the probabilities, or the number, of a text and of a pair."""
    place = tmp_path_factory.mktemp("classifiers")
    made = {}
    for problem, count in (("single_label_classification", 3), ("regression", 1)):
        names = {"id2label": dict(enumerate(["ärger", "joy", "fear"][:count]))} if count > 1 else {"num_labels": 1}
        model, tokenizer = encoder("BertForSequenceClassification", place / f"model-{count}", **names)
        made[problem] = model, tokenizer, artifact(
            ONNX, "fp32", place / f"model-{count}", CLASSIFICATION, place / problem
        )  # fmt: skip
    model, tokenizer, folder = made["single_label_classification"]
    multi = shutil.copytree(folder, place / "multi_label_classification")
    config = json.loads((multi / "config.json").read_text()) | {"problem_type": "multi_label_classification"}
    (multi / "config.json").write_text(json.dumps(config))
    made["multi_label_classification"] = model, tokenizer, multi
    return made


def answers(problem, model, tokenizer, *texts):
    with torch.no_grad():
        logits = model(**tokenizer(*texts, truncation=True, return_tensors="pt")).logits[0]
    if problem == "single_label_classification":
        logits = logits.softmax(-1)
    elif problem == "multi_label_classification":
        logits = logits.sigmoid()
    named = {model.config.id2label[i]: value for i, value in enumerate(logits.tolist())}
    return dict(sorted(named.items(), key=lambda item: -item[1]))


@pytest.mark.parametrize("file", ["run.py", "run.mjs"])
@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
def test_labels(request, classifiers, problem, file):
    if file == "run.mjs":
        request.getfixturevalue("node")
    *known, folder = classifiers[problem]
    wanted = answers(problem, *known, TEXTS[0], TEXTS[1])
    got = json.loads(client(folder, TEXTS[0], TEXTS[1], file=file))
    assert list(got) == list(wanted)
    assert got == pytest.approx(wanted, abs=1e-5)
    if problem == "single_label_classification":
        long = " ".join(TEXTS * 10)  # beyond the model's positions: it is cut, and keeps its last special token
        assert json.loads(client(folder, long, file=file)) == pytest.approx(answers(problem, *known, long), abs=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "int8-dynamic"])
def test_generation_by_transformers(tiny, tmp_path, precision):
    folder = artifact(TORCH, precision, tiny, GENERATION, tmp_path / precision)
    assert ids(folder) == expected(TORCH, folder, tiny)


def test_encoders_by_transformers(tmp_path):
    model, tokenizer = encoder("BertForSequenceClassification", tmp_path / "model", num_labels=3)
    folder = artifact(TORCH, "bf16", tmp_path / "model", CLASSIFICATION, tmp_path / "labels")
    wanted = answers("single_label_classification", model.bfloat16(), tokenizer, TEXTS[0])
    assert json.loads(client(folder, TEXTS[0])) == pytest.approx(wanted, abs=0.01)
    model, tokenizer = encoder("BertModel", tmp_path / "features")
    folder = artifact(TORCH, "bf16", tmp_path / "features", FEATURES, tmp_path / "vectors")
    with torch.no_grad():
        states = model(**tokenizer(TEXTS[0], return_tensors="pt")).last_hidden_state[0].mean(0).numpy()
    got = np.array(vectors(folder)[0])
    assert got @ states / (np.linalg.norm(got) * np.linalg.norm(states)) > 0.999
