"""How far an artifact is right: the boundaries that a configuration names, and what is found beyond them."""

from __future__ import annotations

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from conftest import SMALL

from exporter.checkpoint.boundaries import find_boundaries
from exporter.errors import BuildError
from exporter.measure.gates import judge
from exporter.measure.lengths import FIGURE, PROVEN, Length, Lengths, compare_lengths, cuts_of, positions, told_of
from exporter.report.result import Result
from exporter.types import CLASSIFICATION, FEATURES, GENERATION, TOKENIZER_FILES, Gates

VOCABULARY, LAYERS = 64, ["full_attention", "sliding_attention"]

NAMED = {
    "a window": ({"sliding_window": 16, "max_position_embeddings": 64}, [(16, "sliding_window 16")]),
    "a window that is off": ({"sliding_window": 16, "use_sliding_window": False}, []),
    "none": ({"sliding_window": None, "max_window_layers": 28, "_sliding_window_pattern": 6}, []),
    "windows that no layer has": ({"sliding_window": 16, "layer_types": ["full_attention"]}, []),
    "windows that a layer has": ({"sliding_window": 16, "layer_types": LAYERS}, [(16, "sliding_window 16")]),
    "a window for each layer": (
        {"attention_window": [8, 8, 32]},
        [(8, "attention_window 8"), (32, "attention_window 32")],
    ),
    "one that all its positions lie within": ({"sliding_window": 64, "max_position_embeddings": 64}, []),
    "ModernBERT's": ({"local_attention": 128, "layer_types": LAYERS}, [(128, "local_attention 128")]),
    "a text model's in another": (
        {"text_config": {"sliding_window": 16}, "vision_config": {"window_size": 7}},
        [(16, "text_config.sliding_window 16")],
    ),
    "longrope's, as the hub has it": (
        {"original_max_position_embeddings": 32, "max_position_embeddings": 512, "rope_scaling": {"type": "longrope"}},
        [(32, "original_max_position_embeddings 32")],
    ),
    "longrope's, as transformers has it": (
        {"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 32}},
        [(32, "rope_parameters.original_max_position_embeddings 32")],
    ),
    "one kind of layer's": (
        {"rope_parameters": {"full_attention": {"original_max_position_embeddings": 32}}},
        [(32, "rope_parameters.full_attention.original_max_position_embeddings 32")],
    ),
    "a dynamic rope's": (
        {"max_position_embeddings": 40, "rope_scaling": {"type": "dynamic", "factor": 4.0}},
        [(40, "rope_scaling.dynamic rope beyond 40 positions")],
    ),
    "BigBird's": (
        {"attention_type": "block_sparse", "block_size": 2, "num_random_blocks": 1},
        [(14, "attention_type block_sparse 14")],
    ),
    "the full BigBird's": ({"attention_type": "original_full", "block_size": 2, "num_random_blocks": 1}, []),
    "chunks": ({"attention_chunk_size": 16, "chunk_size_feed_forward": 4}, [(16, "attention_chunk_size 16")]),
    "names of classes": ({"id2label": {0: "window"}, "label2id": {"window": 0}}, []),
}


@pytest.mark.parametrize("kind", NAMED)
def test_a_boundary_is_found_and_named(kind):
    config, expected = NAMED[kind]
    assert [(one.tokens, one.name) for one in find_boundaries(config, GENERATION, None)] == expected


def test_an_encoder_is_held_to_the_texts_that_it_takes():
    config = {"local_attention": 128, "max_position_embeddings": 512}
    assert find_boundaries(config, FEATURES, 128) == ()
    assert find_boundaries(config, GENERATION, 128)  # a tokenizer's limit is only advice to a decoder


class Windowed:
    """A model whose every answer depends on the last `window` tokens, rounded to `step`, with a cache of them."""

    engine = "windowed"

    def __init__(self, window: int, step: float = 0.0, forgets: bool = False) -> None:
        self.table = np.random.default_rng(0).normal(size=(VOCABULARY, VOCABULARY)).astype(np.float32)
        self.window, self.size, self.forgets = window, step, forgets
        self.read = np.zeros(0, np.int64)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def logits(self, ids):
        seen = [self.table[ids[max(0, i - self.window + 1) : i + 1]].sum(0) / 4 for i in range(len(ids))]
        out = np.stack(seen)
        return (np.round(out / self.size) * self.size if self.size else out).astype(np.float32)

    def prefill(self, ids):
        self.read = ids
        return self.logits(ids)[-1]

    def step(self, token):
        self.read = np.append(self.read[-4:] if self.forgets else self.read, token)
        return self.logits(self.read)[-1]


class Bare(Windowed):
    """A model without a cache."""

    prefill = step = None


class Encoding(Windowed):
    def logits(self, ids):
        return super().logits(ids)[-1:]


def lengths_of(model, task=GENERATION, boundary=16, tokens=48, **more):
    rng = np.random.default_rng(1)
    near, far = rng.integers(0, VOCABULARY, (8, boundary // 2)), rng.integers(0, VOCABULARY, (4, tokens))
    at, cuts = positions(boundary, tokens, task), cuts_of(boundary, tokens, False, task)
    length = Length("sliding_window 16", boundary, near, far[: 1 if task == GENERATION else 4], at, cuts)
    return Lengths(12, (told_of(lambda: model, length, task),), **more)


def found(model, lengths, task=GENERATION):
    return compare_lengths(lambda: model, lengths, task, lambda done, total: None)


@pytest.mark.parametrize("step", [0.0, 0.05, 0.4])
def test_what_a_format_costs_it_costs_on_both_sides(step, tmp_path):
    lengths_of(Windowed(16)).save(tmp_path / "lengths.npz")
    proven, figure = found(Windowed(16, step), Lengths.load(tmp_path / "lengths.npz"))
    assert proven == 48
    assert figure.value < 1
    assert figure.detail == "proven up to 48 tokens, beyond sliding_window 16"


@pytest.mark.parametrize("step", [0.0, 0.05])
def test_an_artifact_without_the_window_is_wrong_beyond_it(step):
    proven, figure = found(Windowed(48, step), lengths_of(Windowed(16)))
    assert proven == 12  # what the evaluation reaches
    assert figure.value > 10
    assert figure.detail.startswith("wrong beyond sliding_window 16: KL ")
    row = Result("onnx", "fp32", quality={FIGURE: figure}, artifact={PROVEN: proven})
    [gate] = judge(Gates(), row, frozenset(), 100)
    assert (gate.name, gate.passed) == ("max_length_drift", False)
    assert "sliding_window 16" in gate.detail


def test_a_cache_that_is_wrong_beyond_the_window_is_found():
    lengths = lengths_of(Windowed(16))
    figure = found(Windowed(16, forgets=True), lengths)[1]
    assert figure.value > 1
    assert "of them cached" in figure.detail


@pytest.mark.parametrize("task", [FEATURES, CLASSIFICATION])
def test_encoders_are_compared_beyond_it_too(task):
    kind = Bare if task == FEATURES else Encoding
    lengths = lengths_of(kind(16), task)
    assert found(kind(16, 0.05), lengths, task)[0] == 48
    assert found(kind(48, 0.05), lengths, task)[1].detail.startswith("wrong beyond sliding_window 16: relative error")


def test_what_was_not_looked_at_is_not_claimed():
    lengths = lengths_of(Windowed(16), unproven=((8704, "original_max_position_embeddings 8192"),))
    told = found(Windowed(16), lengths)[1].detail
    assert "not proven beyond original_max_position_embeddings 8192, which --proven-length 8704 would reach" in told
    short = Windowed(16)
    short.max_length = 32  # an engine's profile
    proven, figure = found(short, lengths)
    assert (proven, figure.value) == (12, None)
    assert "takes no more than 32 tokens" in figure.detail


def test_a_text_that_cannot_be_read_is_told_with_its_boundary():
    lengths = lengths_of(Windowed(16))
    broken = Windowed(16)
    broken.logits = lambda ids: Windowed.logits(broken, ids) if len(ids) < 20 else [][1]
    with pytest.raises(BuildError, match=r"cannot read 48 tokens \(beyond sliding_window 16\)"):
        found(broken, lengths)


def test_the_gate_of_a_length_that_was_asked_for():
    row = Result("onnx", "fp32", artifact={PROVEN: 48})
    limits = partial(judge, result=row, asked=frozenset({"min_proven_tokens"}), scored=100)
    assert [gate.passed for gate in limits(Gates(min_proven_tokens=48))] == [True]
    assert [gate.passed for gate in limits(Gates(min_proven_tokens=49))] == [False]


_SIZES = {
    "vocab_size": 2048, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def saved(model, tiny, folder):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (tiny / name).is_file():
            shutil.copy(tiny / name, folder)
    return folder


def test_a_window_that_a_graph_lost_fails_its_row_and_a_whole_one_is_proven(tiny, tmp_path, run_here, out):
    """llama.cpp's converter knows no window for Mistral; transformers' own code does, and so its trace."""
    sizes = _SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 256, "sliding_window": 128}
    folder = saved(transformers.MistralForCausalLM(transformers.MistralConfig(**sizes)), tiny, tmp_path / "model")
    targets = ("-t", "gguf:f32", "-t", "gguf:q8_0", "-t", "onnx:fp32", "-t", "torch:bf16")
    job = ("run", *SMALL, "--window", 64, "-m", folder, *targets, "-o", out)
    done = run_here(*job, "--proven-length", 200)
    results = json.loads((out / "report.json").read_text())["results"]
    rows = {f"{row['target']}:{row['precision']}": row for row in results}
    wrong = rows["gguf:f32"]
    assert done.returncode == 4, done.stdout + done.stderr  # a gate of one, and one that was not built
    assert "wrong beyond sliding_window 128" in wrong["reason"]
    assert rows["gguf:q8_0"]["status"] == "failed"
    told = "its float16 file does not agree with the reference (wrong beyond sliding_window 128"
    assert told in rows["gguf:q8_0"]["reason"]
    failed = {gate["name"] for gate in wrong["gates"] if not gate["passed"]}
    assert failed == {"max_length_drift", "min_proven_tokens"}
    for right in ("torch:bf16", "onnx:fp32"):
        assert all(gate["passed"] for gate in rows[right]["gates"]), rows[right]["gates"]
        assert "proven up to 200 tokens, beyond sliding_window 128" in rows[right]["reason"]
        assert json.loads((out / right.replace(":", "-") / "manifest.json").read_text())[PROVEN] == 200
    assert json.loads((out / "gguf-f32" / "manifest.json").read_text())[PROVEN] == 64


def test_a_length_that_the_model_does_not_have_is_refused(refused, tiny):
    assert "--proven-length 99999 is beyond this model's" in refused("-m", tiny, "--proven-length", 99999)
