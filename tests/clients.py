"""Artifacts with the programs that travel with them, and how a test runs one: in a process of its own, as its user."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from exporter.pipeline.packing import pack
from exporter.types import Checkpoint, ExportRequest

NODE_MODULES = Path(__file__).parent / "node" / "node_modules"
PROMPT = "The class definition"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"word{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"), "##s", "."]
SIZES = {
    "vocab_size": len(WORDS), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 64,
}  # fmt: skip


def encoder(architecture, folder, **more):
    """A small random BERT with a WordPiece, which every client's tokenizer knows."""
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(transformers.BertConfig(**SIZES, **more)).eval()
    with torch.no_grad():  # the usual initialization makes all texts alike
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    plain = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    plain.normalizer = normalizers.BertNormalizer()
    plain.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    plain.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "attention_mask", "token_type_ids"]
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, model_max_length=64, model_input_names=inputs, **named
    )
    fast.save_pretrained(folder)
    return model, fast


def artifact(target, precision, checkpoint, task, folder, **more):
    """A folder as `exporter run` publishes it, as far as its programs look at it."""
    folder.mkdir(parents=True)
    scratch = folder.with_name(f"{folder.name}.scratch")
    scratch.mkdir()
    source = Checkpoint(checkpoint, task, str(checkpoint), "0" * 64, 0)
    target.export(ExportRequest(source, precision, folder, scratch, 1, **more))
    pack(target, checkpoint, folder, task)
    (folder / "manifest.json").write_text(json.dumps({"variant": f"{target.name}:{precision}", "task": task}))
    return folder


def client(folder, *words, file="run.py"):
    """What a program of an artifact's folder prints."""
    program = shutil.which("node") if file.endswith(".mjs") else sys.executable
    if file.endswith(".mjs") and not (folder.parent / "node_modules").exists():
        (folder.parent / "node_modules").symlink_to(NODE_MODULES)  # where Node looks, on its way up
    done = subprocess.run(
        [program, folder / file, *map(str, words)], capture_output=True, text=True, cwd=folder.parent, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def ids(folder, *words, **more):
    """The tokens that a program adds to the prompt."""
    return [int(word) for word in client(folder, PROMPT, "-n", 24, "--ids", *words, **more).split()]


@pytest.fixture(scope="session")
def node():
    """Node with transformers.js."""
    lacks = [
        what for what, there in (("node", shutil.which("node")), (NODE_MODULES, NODE_MODULES.is_dir())) if not there
    ]
    if lacks:
        pytest.skip(
            f"{' and '.join(map(str, lacks))} are missing: apt-get install nodejs npm && make {NODE_MODULES}/.installed"
        )
