"""Foreign programs open an ONNX artifact's folder by its path alone: nothing is said of files, types or devices."""

from __future__ import annotations

import json
import shutil
import subprocess

import clients
import numpy as np
import onnx
import onnxruntime_genai as og
import pytest
import torch
import transformers
from clients import NODE_MODULES, PROMPT, artifact, encoder
from conftest import ROOT
from optimum.utils.file_utils import find_files_matching_pattern

from exporter.targets.onnx.layout import DATA, MODEL, configure
from exporter.targets.onnx.target import ONNX
from exporter.targets.onnx_graph.file import save_onnx
from exporter.types import CLASSIFICATION, FEATURES, GENERATION

node = clients.node
TINY = ROOT / "models" / "tiny"
TEXT = "worda wordbs wordc."
TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"


def in_node(body, *words):
    """What a module that imports transformers.js prints as JSON."""
    module = f'import {{ AutoModel, AutoTokenizer, ModelRegistry, pipeline }} from "@huggingface/transformers";\n{body}'
    done = subprocess.run(
        [shutil.which("node"), "--input-type=module", "-e", module, "--", *map(str, words)],
        capture_output=True, text=True, cwd=NODE_MODULES.parent, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """(checkpoint, artifact) of a decoder whose chat template is a file of its own, as transformers 5 saves it."""
    place = tmp_path_factory.mktemp("decoder")
    shutil.copytree(TINY, place / "model", ignore=shutil.ignore_patterns("adapter", "*.txt", "*.md"))
    settings = json.loads((TINY / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (place / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    (place / "model" / "chat_template.jinja").write_text(TEMPLATE)
    # Of files of somebody else's: a client would look for model_q4.onnx, and the graph in three parts.
    config = json.loads((TINY / "config.json").read_text())
    config["transformers.js_config"] = {"dtype": "q4", "use_external_data_format": {"model": 3}}
    (place / "model" / "config.json").write_text(json.dumps(config))
    return place / "model", artifact(ONNX, "int8-weight", place / "model", GENERATION, place / "onnx-int8-weight")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """{task: (model, tokenizer, artifact)}"""
    made = {}
    for task, architecture in ((FEATURES, "BertModel"), (CLASSIFICATION, "BertForSequenceClassification")):
        place = tmp_path_factory.mktemp(architecture)
        model, tokenizer = encoder(architecture, place / "model")
        made[task] = model, tokenizer, artifact(ONNX, "fp32", place / "model", task, place / "onnx-fp32")
    return made


def test_transformers_js_generates(node, decoder):
    checkpoint, folder = decoder
    body = """
    const generate = await pipeline("text-generation", process.argv[1]);
    const [{ generated_text }] = await generate(process.argv[2], { max_new_tokens: 20, do_sample: false });
    const chat = [{ role: "user", content: "Hello" }];
    const asked = generate.tokenizer.apply_chat_template(chat, { tokenize: false });
    console.log(JSON.stringify([generated_text, asked]));
    """
    text, asked = in_node(body, folder, PROMPT)
    words = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    ids = words(PROMPT, return_tensors="pt")
    wanted = model.generate(**ids, max_new_tokens=20, do_sample=False)[0]
    assert text == words.decode(wanted, skip_special_tokens=True)
    assert asked == words.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False) == "<user>Hello"


def test_transformers_js_runs_encoders(node, encoders):
    model, tokenizer, folder = encoders[FEATURES]
    body = """
    const read = await pipeline("feature-extraction", process.argv[1]);
    console.log(JSON.stringify((await read(process.argv[2], { pooling: "mean" })).tolist()[0]));
    """
    with torch.no_grad():
        states = model(**tokenizer(TEXT, return_tensors="pt")).last_hidden_state[0]
    np.testing.assert_allclose(in_node(body, folder, TEXT), states.mean(0), atol=1e-4)
    model, tokenizer, folder = encoders[CLASSIFICATION]
    body = """
    const label = await pipeline("text-classification", process.argv[1]);
    console.log(JSON.stringify(await label(process.argv[2], { top_k: 5 })));
    """
    with torch.no_grad():
        shares = model(**tokenizer(TEXT, return_tensors="pt")).logits[0].softmax(-1)
    wanted = {model.config.id2label[at]: share for at, share in enumerate(shares.tolist())}
    assert {one["label"]: one["score"] for one in in_node(body, folder, TEXT)} == pytest.approx(wanted, abs=1e-5)


FILES = """
const files = {};
for (const device of ["cpu", "wasm", "webgpu"]) {
  const all = await ModelRegistry.get_model_files(process.argv[1], { device });
  files[device] = all.filter((one) => one.includes(".onnx"));
}
console.log(JSON.stringify(files));
"""


def test_transformers_js_looks_for_the_same_file_in_a_browser(node, decoder):
    assert in_node(FILES, decoder[1]) == {device: [MODEL] for device in ("cpu", "wasm", "webgpu")}


def test_weights_in_a_file_of_their_own(node, encoders, tmp_path):
    """As above 2 GB: what a browser must fetch beside the graph stands in config.json."""
    whole = encoders[FEATURES][2]
    folder = shutil.copytree(whole, tmp_path / "apart")
    save_onnx(onnx.load(whole / MODEL), folder / MODEL, limit=0)
    assert configure(whole.parent / "model", folder) == (MODEL, DATA)
    assert in_node(FILES, folder)["wasm"] == [MODEL, DATA]
    body = """
    const model = await AutoModel.from_pretrained(process.argv[1]);
    const tokenizer = await AutoTokenizer.from_pretrained(process.argv[1]);
    console.log(JSON.stringify((await model(await tokenizer(process.argv[2]))).last_hidden_state.tolist()[0]));
    """
    np.testing.assert_allclose(in_node(body, folder, TEXT), in_node(body, whole, TEXT), atol=1e-6)


def test_onnxruntime_genai_reads_the_template(decoder):
    words = og.Tokenizer(og.Model(str(decoder[1])))
    assert words.apply_chat_template('[{"role": "user", "content": "Hello"}]', add_generation_prompt=True) == (
        "<user>Hello"
    )


@pytest.mark.parametrize("task", [GENERATION, FEATURES, CLASSIFICATION])
def test_optimum_finds_one_file(decoder, encoders, task):
    """As its loaders look: ORTModel*._from_pretrained of optimum-onnx, which cannot be installed beside transformers 5.

    They call this function of optimum's with this pattern, and take the one file's folder for the subfolder.
    """
    folder = decoder[1] if task == GENERATION else encoders[task][2]
    assert find_files_matching_pattern(folder, r".*\.onnx$", glob_pattern="**/*.onnx") == [folder / MODEL]
    assert transformers.AutoConfig.from_pretrained(folder).model_type in ("llama", "bert")
