"""A trace that serves other weights too: what is exported of it is what a trace of their own gives, byte for byte."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import text2text_models
import torch
import transformers as hf
import vision_models
from policied import INT4, INT8, static_policy, windows
from test_encoders import LINES, SIZES, tokenizer
from test_traced_graph import DECODERS, ENCODERS, LLAMA, saved

from exporter import Job, run
from exporter.checkpoint.linear import linear_layers
from exporter.form import TEXT2TEXT
from exporter.store import file_names
from exporter.targets.onnx.target import ONNX
from exporter.targets.onnx_graph.attention_operator import ANY_SIZE
from exporter.targets.onnx_graph.cached_attention import fuse
from exporter.targets.onnx_graph.encoder_decoder import trace_encoder_decoder
from exporter.targets.onnx_graph.kept_trace import kept_trace
from exporter.targets.onnx_graph.traced import load_model, notes_of, trace_causal_lm, trace_encoder
from exporter.targets.tensorrt.graph import write_graph
from exporter.types import FEATURES, Checkpoint, ExportRequest


def other_weights(folder: Path, into: Path, seed: int = 1) -> Path:
    """A checkpoint of the same architecture, each of whose parameters is another: norms, biases and tables too."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, into)
    random = torch.Generator().manual_seed(seed)
    weights = {
        name: value + 0.05 * torch.randn(value.shape, generator=random) if value.is_floating_point() else value
        for name, value in load_file(into / "model.safetensors").items()
    }
    save_file(weights, into / "model.safetensors", {"format": "pt"})
    return into


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in file_names(folder)}


def policy_of(folder: Path, task: str, kind: str, precision: str, floats: int) -> dict[str, Any]:
    model = load_model(folder, task, False)
    layers = linear_layers(model)
    policy = static_policy(model, windows(kind)) if precision == "int8-static" else dict.fromkeys(layers, INT4)
    if "lm_head" in policy:
        policy["lm_head"] = INT8
    return policy | dict.fromkeys([*layers][:floats])


@pytest.mark.parametrize("precision", ["int4-weight", "int8-static"])
@pytest.mark.parametrize("kind", ["tiny", "gpt2", "phi3", "bert", "bert-classifier"])
def test_an_artifact_of_a_kept_trace_is_one_from_nothing(kind, precision, policied_models, tmp_path):
    """After another checkpoint under another policy, into the same folder of traces."""
    first, task = policied_models(kind)
    second = other_weights(first, tmp_path / "second")

    def export(checkpoint: Path, name: str, floats: int, traces: Path | None) -> dict[str, bytes]:
        policy = policy_of(checkpoint, task, kind, precision, floats)
        folder, scratch = tmp_path / name, tmp_path / f"{name}-scratch"
        folder.mkdir()
        scratch.mkdir()
        source = Checkpoint(checkpoint, task, kind, "0" * 64, 0)
        notes = ONNX.export(ExportRequest(source, precision, folder, scratch, 1, policy=policy, traces=traces)).notes
        return contents(folder) | {"notes": "\n".join(notes).encode()}

    traces = tmp_path / "traces"
    traces.mkdir()
    before = export(first, "first", 0, traces)
    [trace] = traces.iterdir()
    made = trace.stat().st_mtime_ns
    after = export(second, "after", 2, traces)
    assert [*traces.iterdir()] == [trace]
    assert trace.stat().st_mtime_ns == made
    assert trace.stat().st_size < 2_000_000  # no weights
    assert after == export(second, "alone", 2, None)
    assert after != before


VISION = ("ViT", "ResNet", "ConvNext")
BOTH = {"attention": ANY_SIZE, "fuse": fuse}


def graphs(name: str, folder: Path) -> tuple[Path, Any]:
    """A random checkpoint, and what writes its float graphs: (checkpoint, model.onnx, **traces)."""
    checkpoint = folder / "checkpoint"
    if name in DECODERS:
        saved(checkpoint, hf.AutoModelForCausalLM, DECODERS[name]())
        return checkpoint, partial(trace_causal_lm, **BOTH)
    if name in ENCODERS:
        saved(checkpoint, hf.AutoModel, ENCODERS[name]())
        return checkpoint, lambda source, model, **more: trace_encoder(source, FEATURES, model, **BOTH, **more)
    checkpoint.mkdir()
    if name in VISION:
        vision_models.checkpoint(checkpoint, name)
        return checkpoint, _pictures
    text2text_models.checkpoint(checkpoint, name)
    return checkpoint, lambda source, model, **more: trace_encoder_decoder(
        source, TEXT2TEXT, model, model.with_name("decoder.onnx"), **more
    )


def _pictures(source: Path, model: Path, **more: Any) -> None:
    trace_encoder(source, "image-classification", model, **BOTH, **more)


@pytest.mark.parametrize(
    "name", ["bloom", "gemma3", "mixtral", "opt", "stablelm", "distilbert", "modernbert", *VISION, "T5", "Bart"]
)
def test_a_graph_of_a_kept_trace_is_one_of_its_own(name, tmp_path):
    made, write = graphs(name, tmp_path)  # often with all biases 0: equal ones make another trace
    checkpoint, second = (other_weights(made, tmp_path / f"weights-{seed}", seed) for seed in (1, 2))
    places = [tmp_path / one for one in ("first", "after", "alone", "traces")]
    for place in places:
        place.mkdir()
    first, after, alone, traces = places
    write(checkpoint, first / "model.onnx", traces=traces)
    kept = {path: path.stat().st_mtime_ns for path in traces.iterdir()}
    assert len(kept) == (2 if name in text2text_models.FAMILIES else 1)
    write(second, after / "model.onnx", traces=traces)
    assert {path: path.stat().st_mtime_ns for path in traces.iterdir()} == kept
    write(second, alone / "model.onnx")
    assert contents(after) == contents(alone)
    assert contents(after) != contents(first)


def test_tensorrt_s_graph_of_a_kept_trace_is_one_of_its_own(policied_models, tmp_path):
    first, task = policied_models("bert")
    second = other_weights(first, tmp_path / "second")
    (tmp_path / "traces").mkdir()

    def write(checkpoint: Path, name: str, traces: Path | None) -> bytes:
        folder = tmp_path / name
        folder.mkdir()
        source = Checkpoint(checkpoint, task, "bert", "0" * 64, 0)
        write_graph(
            ExportRequest(source, "int8-weight", folder, folder, 1, traces=traces), model := folder / "typed.onnx"
        )
        return model.read_bytes()

    written = [write(first, "first", tmp_path / "traces"), write(second, "after", tmp_path / "traces")]
    assert len([*(tmp_path / "traces").iterdir()]) == 1
    assert written[1] == write(second, "alone", None) != written[0]


def test_why_attention_is_written_out_is_told_of_a_kept_trace_too(tmp_path):
    """Which is known when the model runs: here it does not."""
    config = hf.Gemma2Config(**LLAMA, head_dim=8, attn_logit_softcapping=30.0)
    saved(tmp_path / "checkpoint", hf.AutoModelForCausalLM, config)
    (tmp_path / "traces").mkdir()
    for name in ("first.onnx", "second.onnx"):
        trace_causal_lm(tmp_path / "checkpoint", tmp_path / name, **BOTH, traces=tmp_path / "traces")
    first, second = (notes_of(ir.load(tmp_path / name)) for name in ("first.onnx", "second.onnx"))
    assert first == second
    assert "a cap on the scores" in first[0]


def test_weights_that_were_equal_and_are_not_are_traced_again(tmp_path):
    """torch.onnx makes one of all that are: of a trace with one bias for two layers no other checkpoint can be made."""
    torch.manual_seed(0)
    model = hf.BertModel(hf.BertConfig(**SIZES))  # all biases 0, all norms 1
    model.save_pretrained(tmp_path / "checkpoint")
    with torch.no_grad():
        model.encoder.layer[0].output.dense.bias.add_(1.0)
    model.save_pretrained(tmp_path / "second")
    for source in (tmp_path / "checkpoint", tmp_path / "second"):
        tokenizer(source, 64)
    (tmp_path / "traces").mkdir()
    written = {}
    for name, traces in (("checkpoint", tmp_path / "traces"), ("second", tmp_path / "traces"), ("second", None)):
        (tmp_path / f"{name}-{traces is None}").mkdir()
        file = tmp_path / f"{name}-{traces is None}" / "model.onnx"
        trace_encoder(tmp_path / name, FEATURES, file, **BOTH, traces=traces)
        written[name, traces is None] = file.read_bytes()
    assert len([*(tmp_path / "traces").iterdir()]) == 2
    assert written["second", False] == written["second", True]


class Toy(torch.nn.Module):
    """A layer, and what a model may have made of its weights when it was loaded."""

    def __init__(self, **held: Any) -> None:
        super().__init__()
        self.layer, self.other = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.scale, self.table, self.name_or_path = held.get("scale", 1.0), held.get("table"), held.get("path", "")
        self.other.inner = held.get("inner")
        self.config = held.get("config", hf.BertConfig(**SIZES))
        self.register_buffer("positions", held.get("positions", torch.arange(4)), persistent=False)
        self.places = [held.get("places", torch.zeros(2))]
        torch.nn.init.uniform_(self.layer.bias)
        if held.get("equal"):
            self.other.load_state_dict(self.layer.state_dict())


@pytest.mark.parametrize(
    "held",
    [
        {"scale": 2.0},
        {"table": torch.ones(3)},
        {"inner": [3]},
        {"positions": torch.arange(1, 5)},
        {"places": torch.ones(2)},
        {"table": {"of": np.ones(2, np.float32)}},
        {"table": SimpleNamespace(limit=3)},
        {"table": [torch.nn.Linear(2, 2)]},  # in no table of modules: its weights are the trace's own
        {"config": hf.BertConfig(**SIZES | {"hidden_act": "relu"})},
        {"equal": True},
    ],
    ids=str,
)
def test_what_a_trace_writes_down_of_a_model_tells_traces_apart(held, tmp_path):
    made = []

    def make() -> onnx.ModelProto:
        made.append(True)
        return onnx.ModelProto()

    def ask(module: torch.nn.Module, inputs: dict[str, Any] | None = None) -> int:
        kept_trace(tmp_path, module, inputs or {"x": ("batch", 4)}, {"y": ("batch", 4)}, make)
        return len(made)

    assert ask(Toy()) == 1
    assert ask(Toy(path="elsewhere")) == 1  # other weights, of another folder
    assert ask(Toy(**held)) == 2
    assert ask(Toy(**held)) == 2
    assert ask(Toy(), {"x": ("batch", 5)}) == 3
    assert ask(Toy().double()) == 4
    assert ask(Toy()) == 4


def encoder(folder: Path) -> Path:
    """A random BERT, which has a bias in every layer."""
    torch.manual_seed(0)
    model = hf.BertModel(hf.BertConfig(**SIZES)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    tokenizer(folder, 64)
    return folder


@pytest.mark.parametrize("model", ["tiny", "encoder"])
def test_a_later_attempt_s_artifact_is_that_of_its_policy_alone(model, tmp_path):
    """A run in which the first mix fails, and a run that is given the last one."""
    more: dict[str, Any] = {"eval_tokens": 512, "calib_tokens": 2048}
    if model == "encoder":
        (tmp_path / "calib.txt").write_text(LINES)
        (tmp_path / "eval.txt").write_text("\n".join(line[::-1] for line in LINES.split("\n")[:40]))
        more = {"calib_text": tmp_path / "calib.txt", "eval_text": tmp_path / "eval.txt"}
        model = str(encoder(tmp_path / "model"))
    more |= {"model": model, "target": ("onnx:int4-weight",), "speed": False, "threads": 1, "rounding": "nearest"}
    more["max_logit_error"] = 1e-6  # no mix keeps it, and no simulation foretells it
    report = run(Job(**more, sensitivity="estimated", output=tmp_path / "chosen"))
    [row] = [one for one in report["results"] if one["precision"] == "int4-weight"]
    attempts = row["build"]["quantization"]["attempts"]
    assert len(attempts) > 1
    assert attempts[-1]["loss"] < attempts[0]["loss"]
    chosen = tmp_path / "chosen" / "onnx-int4-weight"
    run(Job(**more, policy=str(chosen / "policy.yaml"), output=tmp_path / "given"))
    given = tmp_path / "given" / "onnx-int4-weight" / "onnx" / "model.onnx"
    assert given.read_bytes() == (chosen / "onnx" / "model.onnx").read_bytes()
