"""onnxruntime-genai opens the folder of any decoder that we trace, by a genai_config.json of our own."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime_genai as og
import pytest
import torch
import transformers
from conftest import ROOT

from exporter.measure.samples import greedy
from exporter.targets.onnx.genai_config import NotDescribedError, genai_config
from exporter.targets.onnx.layout import MODEL, configure, describe_for_genai, place
from exporter.targets.onnx.target import ONNX
from exporter.targets.onnx_graph.traced import trace_causal_lm
from exporter.types import GENERATION, Checkpoint

TINY = ROOT / "models" / "tiny"
WORDS, LENGTH, END = 320, 96, 7
NAMED = {"vocab_size": WORDS, "bos_token_id": 5, "eos_token_id": END, "pad_token_id": None}
SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
}  # fmt: skip
GROUPED = SIZES | {"num_key_value_heads": 2}
FAMILIES = {
    "LlamaForCausalLM": transformers.LlamaConfig(**NAMED, **GROUPED),
    "GPT2LMHeadModel": transformers.GPT2Config(**NAMED, n_embd=32, n_layer=2, n_head=4, n_positions=LENGTH),
    "Qwen2ForCausalLM": transformers.Qwen2Config(**NAMED, **GROUPED),
    "GemmaForCausalLM": transformers.GemmaConfig(**NAMED, **GROUPED, head_dim=16, tie_word_embeddings=False),
    "PhiForCausalLM": transformers.PhiConfig(**NAMED, **SIZES),
    "GPTNeoXForCausalLM": transformers.GPTNeoXConfig(**NAMED, **SIZES),
}
PROMPT = np.array([5, 17, 200, 31, 44, 9], np.int64)


def save(architecture, folder):
    """A small random checkpoint, whose words are told apart."""
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(FAMILIES[architecture])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return folder


def traced(checkpoint, folder):
    """An artifact's folder with a graph that nothing was done to."""
    folder.mkdir()
    model_onnx = place(folder)
    trace_causal_lm(checkpoint, model_onnx)
    source = Checkpoint(checkpoint, GENERATION, "it", "0" * 64, 0)
    assert describe_for_genai(source, ir.load(model_onnx), folder) == []
    assert configure(checkpoint, folder) == (MODEL,)
    (folder / "manifest.json").write_text(json.dumps({"task": GENERATION}))
    return folder


def generated(folder, prompt, tokens):
    """What onnxruntime-genai itself adds to the prompt, with nothing set but how much."""
    model = og.Model(str(folder))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + tokens)
    generator = og.Generator(model, parameters)
    generator.append_tokens(prompt.astype(np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)[len(prompt) :]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """folders(architecture): (checkpoint, artifact), made once."""
    made = {}

    def get(architecture):
        if architecture not in made:
            place = tmp_path_factory.mktemp(architecture)
            checkpoint = save(architecture, place / "model")
            made[architecture] = checkpoint, traced(checkpoint, place / "onnx")
        return made[architecture]

    return get


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_family_generates_the_tokens_of_our_own_runner(folders, architecture):
    _, folder = folders(architecture)
    with ONNX.open(folder, 1) as runner:
        wanted = greedy(runner, PROMPT, [END], 24)
    assert len(set(wanted)) > 3  # no text of one word
    assert generated(folder, PROMPT, 24) == wanted


def test_the_shipped_model_and_its_tokenizer(tmp_path):
    folder = traced(TINY, tmp_path / "onnx")
    words = og.Tokenizer(og.Model(str(folder)))
    prompt = words.encode("The class definition")
    assert list(words.eos_token_ids) == [0, 2]
    with ONNX.open(folder, 1) as runner:
        wanted = greedy(runner, np.array(prompt, np.int64), [0, 2], 12)
    assert generated(folder, prompt, 12) == wanted
    assert words.decode(wanted) == transformers.AutoTokenizer.from_pretrained(TINY).decode(wanted)


def test_what_is_written_is_the_graphs_and_the_checkpoints(folders):
    told = json.loads((folders("GPT2LMHeadModel")[1] / "genai_config.json").read_text())
    model, search = told["model"], told["search"]
    decoder = model.pop("decoder")
    assert model == {
        "bos_token_id": 5, "context_length": LENGTH, "eos_token_id": [END], "pad_token_id": END, "type": "decoder",
        "vocab_size": WORDS,
    }  # fmt: skip
    assert decoder["filename"] == "onnx/model.onnx"
    assert list(decoder["inputs"]) == [
        "input_ids", "attention_mask", "position_ids", "past_key_names", "past_value_names",
    ]  # fmt: skip
    numbers = ("head_size", "hidden_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads")
    assert [decoder[name] for name in numbers] == [8, 32, 4, 2, 4]
    assert (search["max_length"], search["do_sample"], search["past_present_share_buffer"]) == (LENGTH, False, False)
    grouped = json.loads((folders("LlamaForCausalLM")[1] / "genai_config.json").read_text())["model"]["decoder"]
    assert (grouped["num_key_value_heads"], grouped["num_attention_heads"]) == (2, 4)


def ports(*layers, more=(), logits=WORDS):
    """A graph with the inputs and outputs of a decoder, whose layers have these (heads, size), and nothing behind."""

    def port(name, kind, *shape):
        return onnx.helper.make_tensor_value_info(name, kind, shape)

    whole, real = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
    inputs = [port("input_ids", whole, "b", "t"), port("attention_mask", whole, "b", "n")]
    inputs += [port(name, real, "b") for name in more]
    outputs = [port("logits", real, "b", "t", logits)]
    for number, (heads, size) in enumerate(layers):
        for part in ("key", "value"):
            inputs.append(port(f"past_key_values.{number}.{part}", real, "b", heads, "p", size))
            outputs.append(port(f"present.{number}.{part}", real, "b", heads, "n", size))
    return ir.from_proto(onnx.helper.make_graph([], "decoder", inputs, outputs))


@pytest.fixture
def checkpoint(folders, tmp_path):
    """settings(file, **more): a checkpoint's folder, with changed settings."""

    def settings(**files):
        for name in ("config", "generation_config"):
            file = folders("LlamaForCausalLM")[0] / f"{name}.json"
            told = json.loads(file.read_text()) | files.get(name, {})
            (tmp_path / file.name).write_text(json.dumps(told))
        return tmp_path

    return settings


@pytest.mark.parametrize(("graph", "why"), [
    (ports((2, 8), (1, 8)), "its layers' caches differ in their heads or their size"),
    (ports((2, 8), (2, 16)), "its layers' caches differ in their heads or their size"),
    (ports(("heads", 8), ("heads", 8)), "its cache's heads and their size are no numbers in the graph"),
    (ports((2, 8), more=["past_conv.0"]), "the graph has past_conv.0"),
    (ports((2, 8), logits="words"), "its vocabulary's size is no number in the graph"),
    (ports(), "its layers are not all ones with a key and a value in the cache"),
])  # fmt: skip
def test_what_the_runtime_cannot_run_is_not_described(checkpoint, graph, why):
    with pytest.raises(NotDescribedError, match=f"^{why}$"):
        genai_config(checkpoint(), graph, MODEL)


def test_a_note_says_so_and_no_file_is_written(checkpoint, tmp_path):
    model = ir.Model(ports((2, 8), (1, 8)), ir_version=10)
    (tmp_path / "artifact").mkdir()
    source = Checkpoint(checkpoint(), GENERATION, "it", "0" * 64, 0)
    notes = describe_for_genai(source, model, tmp_path / "artifact")
    assert notes == ["not for onnxruntime-genai: its layers' caches differ in their heads or their size"]
    assert not list((tmp_path / "artifact").iterdir())


def test_what_ends_a_text(checkpoint, tmp_path):
    def model(**more):
        return genai_config(checkpoint(**more), ports((2, 8), (2, 8)), MODEL)["model"]

    assert model(generation_config={"eos_token_id": [9, 11, WORDS]})["eos_token_id"] == [9, 11]
    assert model(generation_config={"pad_token_id": 3})["pad_token_id"] == 3
    nothing = {"config": {"eos_token_id": None}, "generation_config": {"eos_token_id": None}}
    with pytest.raises(NotDescribedError, match="no token of the vocabulary is named that ends a text"):
        model(**nothing)
    words = transformers.AutoTokenizer.from_pretrained(TINY)
    words.save_pretrained(tmp_path)
    assert model(**nothing)["eos_token_id"] == [words.eos_token_id]


def test_the_search_is_what_the_checkpoint_asks_for(checkpoint, folders):
    asked = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1}
    told = genai_config(checkpoint(generation_config=asked), ports((2, 8), (2, 8)), MODEL)
    assert told["search"].items() >= asked.items()
    assert told["search"]["min_length"] == 0


def test_a_model_without_a_limit_gets_one(checkpoint, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 10**30}))
    bloom = transformers.BloomConfig(**NAMED, hidden_size=32, n_layer=2, n_head=4)
    folder = checkpoint()
    (folder / "config.json").write_text(bloom.to_json_string())
    assert genai_config(folder, ports((4, 8), (4, 8)), MODEL)["model"]["context_length"] == 1 << 20
