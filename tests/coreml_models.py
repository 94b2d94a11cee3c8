"""Small random models of each family that Core ML's tests convert, and artifacts of them."""

from __future__ import annotations

import shutil

import torch
import transformers
from conftest import ROOT

from exporter.targets.coreml.target import COREML
from exporter.types import CLASSIFICATION, FEATURES, GENERATION, Checkpoint, ExportRequest

VOCABULARY, WINDOW = 256, 16
SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip
SHARED = {"num_key_value_heads": 2, "head_dim": 16}
LAYERS = ["sliding_attention", "full_attention"]
TOKENS = {"bos_token_id": 0, "eos_token_id": 0}
FAMILIES = {
    "llama": lambda: transformers.LlamaConfig(
        **SMALL, **SHARED, rope_parameters={"rope_type": "default", "rope_theta": 500.0}
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=128, **TOKENS
    ),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL, num_key_value_heads=2),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, **SHARED),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **SMALL, **SHARED, sliding_window=WINDOW, layer_types=LAYERS, query_pre_attn_scalar=32
    ),
    "mistral": lambda: transformers.MistralConfig(**SMALL, **SHARED, sliding_window=WINDOW),
    "longrope": lambda: transformers.LlamaConfig(
        **SMALL,
        **SHARED,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 500.0,
            "original_max_position_embeddings": 64,
            "short_factor": [1.0] * 8,
            "long_factor": [4.0] * 8,
        },
    ),
    "bert": lambda: transformers.BertConfig(**SMALL),
    "classifier": lambda: transformers.BertConfig(**SMALL, num_labels=3),
}
TASKS = {"bert": FEATURES, "classifier": CLASSIFICATION}
_CLASSES = {FEATURES: transformers.AutoModel, CLASSIFICATION: transformers.AutoModelForSequenceClassification}


def random_model(folder, kind):
    """A checkpoint's folder and task; weights are large enough that an error of any layer shows."""
    torch.manual_seed(0)
    task = TASKS.get(kind, GENERATION)
    model = _CLASSES.get(task, transformers.AutoModelForCausalLM).from_config(FAMILIES[kind]())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(ROOT / "models" / "tiny" / name, folder / name)
    return folder, task


def export(checkpoint, task, precision, folder, scratch, **more):
    """An artifact's folder, with the manifest that opening one needs."""
    folder.mkdir(parents=True)
    scratch.mkdir(parents=True, exist_ok=True)
    known = Checkpoint(checkpoint, task, checkpoint.name, "0" * 64, 0)
    options = COREML.options(**more.pop("options", {}))
    exported = COREML.export(ExportRequest(known, precision, folder, scratch, 1, options, **more))
    (folder / "manifest.json").write_text(f'{{"task": "{task}", "variant": "coreml:{precision}"}}')
    return exported
