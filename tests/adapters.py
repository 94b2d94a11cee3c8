"""Tiny real models of each family, and adapters on them that look trained: what the tests of the merge share."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from safetensors.torch import load_file

from exporter.stages.merge.adapter import read_adapter
from exporter.stages.merge.merge import How, merge
from exporter.stages.merge.proof import answers
from exporter.stages.merge.streaming import merge_streaming
from exporter.types import CLASSIFICATION, FEATURES, GENERATION

VOCABULARY = 128
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCABULARY}
_LLAMA = _SIZES | {"intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 64}
_BERT = _SIZES | {"intermediate_size": 64, "max_position_embeddings": 64}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": VOCABULARY}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 64}
FAMILIES = {  # class, configuration, the modules that adapters are on
    "llama": ("LlamaForCausalLM", _LLAMA | {"tie_word_embeddings": False}, ["q_proj", "v_proj", "down_proj"]),
    "tied": ("LlamaForCausalLM", _LLAMA | {"tie_word_embeddings": True}, ["q_proj", "v_proj", "down_proj"]),
    "llama classifier": ("LlamaForSequenceClassification", _LLAMA | {"num_labels": 3}, ["q_proj"]),
    "gpt2": ("GPT2LMHeadModel", _GPT2, ["c_attn", "c_proj"]),
    "bert": ("BertForSequenceClassification", _BERT | {"num_labels": 3}, ["query", "value", "output.dense"]),
    "encoder": ("BertModel", _BERT, ["query", "value"]),
    "t5": ("T5ForConditionalGeneration", _T5 | {"decoder_start_token_id": 0}, ["q", "v", "wo"]),
    "mixtral": ("MixtralForCausalLM", _LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2}, ["q_proj"]),
}
TASKS = {"bert": "SEQ_CLS", "llama classifier": "SEQ_CLS", "encoder": "FEATURE_EXTRACTION", "t5": "SEQ_2_SEQ_LM"}
LIMIT = 1e-5  # of float32 logits of about 1: a hundred roundings; a forgotten adapter is off by 0.01 and more


def make_base(folder, family, seed=0, dtype="float32", shard="5GB", **config):
    """Saves a random model; its weights are larger than transformers' own, so that attention is not uniform."""
    name, settings, _ = FAMILIES[family]
    torch.manual_seed(seed)
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**settings | config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(0.1 / parameter.std())
            else:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    return folder


def load(path, **options):
    """A folder's model in float32, of the class that its configuration names: what worker.py hands to the merge."""
    name = json.loads((Path(path) / "config.json").read_text())["architectures"][0]
    return getattr(transformers, name).from_pretrained(path, dtype=torch.float32, **options)


def ids_for(vocabulary=VOCABULARY):
    return np.random.default_rng(7).integers(3, vocabulary, (3, 12), dtype=np.int64)


def disturb(model, seed=1, scale=0.05):
    """What training does: every number that may change does, each matrix that starts at zero included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


@dataclass
class Trained:
    """An adapter's folder and what the model that it was trained in answered: PEFT's own forward, nothing merged."""

    path: Path
    ids: np.ndarray
    truth: np.ndarray


def train(base, folder, config, vocabulary=None, seed=1, scale=0.05, model=None, **options):
    """Puts an adapter on a base, changes all that it trains, keeps the answers, and saves it as PEFT does.

    `vocabulary`: new tokens are added first. `options` are save_pretrained's.
    """
    model = model or load(base)
    with warnings.catch_warnings():
        # PEFT warns of ties, of embeddings that it saves, of fan_in_fan_out: here they are what is tested.
        warnings.simplefilter("ignore")
        if vocabulary:
            model.resize_token_embeddings(vocabulary, mean_resizing=False)
            with torch.no_grad():
                for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
                    embedding.weight[VOCABULARY:] = torch.randn(embedding.weight[VOCABULARY:].shape) * 0.1
        torch.manual_seed(seed)
        attached = peft.get_peft_model(model, config)
        disturb(attached, seed, scale)
        truth = answers(attached, ids_for(vocabulary or VOCABULARY))
        attached.save_pretrained(folder, **options)
    return Trained(Path(folder), ids_for(vocabulary or VOCABULARY), truth)


def config(family, kind="LoraConfig", **options):
    """A PEFT configuration for a family, on its usual modules unless others are named."""
    options = {"target_modules": FAMILIES[family][2]} | options
    if kind == "LoraConfig":
        options = {"r": 4, "lora_alpha": 8, "fan_in_fan_out": family == "gpt2"} | options
    return getattr(peft, kind)(task_type=TASKS.get(family, "CAUSAL_LM"), **options)


def task_of(family):
    return {"bert": CLASSIFICATION, "encoder": FEATURES}.get(family, GENERATION)


def in_memory(base, folders, out, how=None, task=GENERATION, weights=None):
    out.mkdir(parents=True)
    return merge(load, base, adapters_of(folders, weights), out, how or How(), task)


def streaming(base, folders, out, how=None, weights=None):
    out.mkdir(parents=True)
    return merge_streaming(load, base, adapters_of(folders, weights), out, how or How(), lambda done, total: None)


def adapters_of(folders, weights=None):
    return [
        read_adapter(Path(path), weight) for path, weight in zip(folders, weights or [None] * len(folders), strict=True)
    ]


def both(base, folders, out, how=None, task=GENERATION, weights=None):
    """Merges both ways, holds every parameter to be the same bit for bit; returns the two records and the model."""
    memory = in_memory(base, folders, out / "memory", how, task, weights)
    stream = streaming(base, folders, out / "streaming", how, weights)
    model = load(out / "memory")
    same(model, load(out / "streaming"))
    return memory, stream, model


def same(first, second):
    ours, theirs = first.state_dict(), second.state_dict()
    assert list(ours) == list(theirs)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert first.config.tie_word_embeddings == second.config.tie_word_embeddings


def error(trained, model):
    """The largest difference between a model's answers and those of the model that the adapter was trained in."""
    return float(np.abs(answers(model, trained.ids) - trained.truth).max())


def tensors(folder):
    """Every tensor of a folder's files, as stored."""
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


def names(folder):
    return sorted(path.name for path in folder.iterdir())
