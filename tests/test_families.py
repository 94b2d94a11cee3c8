"""Families of models: three through the whole program and each ONNX precision, a dozen as `make families` asks them."""

from __future__ import annotations

import shutil

import pytest
import torch
import transformers

from bench.families.examined import reference
from bench.families.graph import Graph
from bench.families.known import FAMILIES as ASKED
from bench.families.models import save_model
from bench.families.outcome import RIGHT, compared
from exporter import Job, run
from exporter.report.table import value
from exporter.targets.onnx.target import ONNX
from exporter.types import TOKENIZER_FILES, Checkpoint, ExportRequest

# Sizes that the blocks of 32 divide, so that every matrix is quantized; the vocabulary is the shipped tokenizer's.
FAMILIES = {
    "GPT2LMHeadModel": transformers.GPT2Config(vocab_size=2048, n_embd=64, n_layer=2, n_head=4, n_positions=512),
    "BloomForCausalLM": transformers.BloomConfig(vocab_size=2048, hidden_size=64, n_layer=2, n_head=4),
    "OPTForCausalLM": transformers.OPTConfig(
        vocab_size=2048, hidden_size=64, word_embed_proj_dim=64, ffn_dim=128, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=512,
    ),
}  # fmt: skip


@pytest.mark.parametrize("architecture", FAMILIES)
def test_family(architecture, tiny, tmp_path):
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(FAMILIES[architecture])
    with torch.no_grad():  # the usual initialization of so few layers answers alike to everything
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.1)
    model.save_pretrained(tmp_path / "model")
    for name in TOKENIZER_FILES:
        if (tiny / name).is_file():
            shutil.copy(tiny / name, tmp_path / "model")
    job = Job(
        model=str(tmp_path / "model"),
        target=("onnx:fp32", "onnx:fp16", "onnx:int8-weight", "onnx:int8-dynamic", "onnx:int4-weight"),
        output=tmp_path / "out",
        eval_tokens=512,
        window=128,
        calib_tokens=2048,
        speed=False,
        threads=1,
    )
    rows = {row["precision"]: row for row in run(job)["results"] if row["target"] == "onnx"}
    assert {row["status"] for row in rows.values()} == {"ok"}, rows
    assert value(rows["fp32"], "ppl_ratio") == pytest.approx(1.0, abs=1e-5)
    assert value(rows["fp32"], "logit_error") < 1e-4
    assert value(rows["fp32"], "cache_kl") < 1e-7
    # Random weights have no outliers: int8 costs little, and the order of the precisions shows.
    assert value(rows["fp16"], "kl") < value(rows["int8-weight"], "kl") < value(rows["int4-weight"], "kl")
    assert value(rows["int8-weight"], "kl") < 1e-3
    assert value(rows["int8-dynamic"], "kl") < 1e-2
    graph = 120_000  # bytes; the weights of a model so small do not hide it
    fp32 = rows["fp32"]["artifact"]
    parameters = fp32["bytes"] / fp32["size_ratio"] / 4
    assert fp32["bytes"] < 4 * parameters * 1.03 + graph
    assert rows["int8-weight"]["artifact"]["bytes"] < 1.125 * parameters * 1.03 + graph


# Of `make families`, which asks them all: different in attention, positions and mask, and such that TorchScript traces
# in about a second. A scaled rotation, a window that all or half of the layers have, ALiBi, positions counted from the
# mask, one head of keys for all, experts, relative positions.
RIGHT_ONES = (
    "llama-linear", "mistral-swa", "gptneox", "mpt", "xglm", "starcoder2", "olmo3", "persimmon", "opt-350m-like",
    "gptbigcode", "mixtral", "deberta-v3", "modernbert", "llama-cls",
)  # fmt: skip


@pytest.mark.parametrize("name", RIGHT_ONES)
def test_a_family_answers_as_transformers_does(name, tmp_path):
    """Alone, padded, with holes and cached, on both sides of its boundaries: bench/families/asked.py."""
    family = ASKED[name]
    for folder in ("model", "scratch", "out"):
        (tmp_path / folder).mkdir()
    save_model(family, tmp_path / "model")
    checkpoint = Checkpoint(tmp_path / "model", family.task, name, "0" * 64, 0)
    ONNX.export(ExportRequest(checkpoint, "fp32", tmp_path / "out", tmp_path / "scratch", threads=1))
    asked, questions = reference(family, tmp_path / "model", family.task)
    found = compared(Graph(tmp_path / "out" / "onnx" / "model.onnx"), asked, questions, True)
    assert found["outcome"] == RIGHT, found
    assert found["asked"] == len(questions)
