"""Small models as graphs for TensorRT, and what those answer in ONNX Runtime: for the tests of that."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import transformers as t

from exporter.checkpoint.linear import linear_layers
from exporter.scheme import Scheme
from exporter.targets.onnx_graph.rounding import write_proof
from exporter.types import CLASSIFICATION, FEATURES, GENERATION

VOCABULARY = 120
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"vocab_size": VOCABULARY, "max_position_embeddings": 128}
GPT = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
MODELS = {
    "llama": (lambda: t.LlamaForCausalLM(t.LlamaConfig(**SIZES, num_key_value_heads=2)), GENERATION),
    "qwen2": (
        lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**SIZES, num_key_value_heads=2, tie_word_embeddings=True)),
        GENERATION,
    ),
    "gpt2": (lambda: t.GPT2LMHeadModel(t.GPT2Config(**GPT)), GENERATION),
    "bert": (lambda: t.BertModel(t.BertConfig(**SIZES)), FEATURES),
    "bert-classifier": (lambda: t.BertForSequenceClassification(t.BertConfig(**SIZES)), CLASSIFICATION),
}
# Of the size of the answers. float16 has 11 bits, bfloat16 8; int8 is compared with its simulation in
# float32: where float16 moves an input over the middle between two codes, it takes the other one.
TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 4e-2, "int8": 8e-2, "int8-weight": 3e-2}


def random_model(folder: Path, kind: str) -> tuple[Path, str]:
    """One of MODELS with random weights in every layer, saved; and its task."""
    torch.manual_seed(0)
    make, task = MODELS[kind]
    model = make()
    with torch.no_grad():
        for weight in model.parameters():  # weights of 0.02 would leave the activations next to nothing
            weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(folder)
    return folder, task


class Opened:
    """A graph in ONNX Runtime: one that rounds where the engine does, unless its types are float32 anyway."""

    def __init__(self, model: Path, precision: str) -> None:
        self.model = model
        if precision != "fp32":
            self.model = model.with_name("proof.onnx")
            write_proof(model, self.model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(self.model, options, providers=["CPUExecutionProvider"])
        self.shapes = {value.name: value.shape for value in self.session.get_inputs()}

    def __call__(self, ids, mask=None, steps=0):
        """[B, T] to answers; of a decoder, all but the last `steps` tokens first, then one after the other."""
        mask = np.ones_like(ids) if mask is None else mask
        past = {
            name: np.zeros((len(ids), shape[1], 0, shape[3]), np.float32)
            for name, shape in self.shapes.items()
            if name.startswith("past_key_values.")
        }
        outputs, parts = [value.name for value in self.session.get_outputs()], []
        for start, end in pairwise([0, *range(ids.shape[1] - steps, ids.shape[1] + 1)]):
            feeds = past | {"input_ids": ids[:, start:end], "attention_mask": mask[:, :end]}
            feeds["position_ids"] = np.maximum(mask.cumsum(-1) - 1, 0)[:, start:end]
            feeds["token_type_ids"] = np.zeros_like(ids)
            taken = {name: value for name, value in feeds.items() if name in self.shapes}
            answers = dict(zip(outputs, self.session.run(outputs, taken), strict=True))
            parts.append(answers.pop(outputs[0]))
            past = {name.replace("present.", "past_key_values."): value for name, value in answers.items()}
        return parts[0] if len(parts) == 1 else np.concatenate(parts, 1)


def some_ids(batch, length):
    return np.random.default_rng(length).integers(3, VOCABULARY, (batch, length))


def static_policy(model, ids):
    """Every linear layer in int8, its input in a signed range whose step float16 holds exactly."""
    most: dict[str, float] = {}

    def watch(name):
        def see(_, inputs):
            most[name] = max(most.get(name, 0.0), inputs[0].abs().max().item())

        return see

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in linear_layers(model).items()]
    with torch.no_grad():
        model(input_ids=torch.tensor(ids))
    for hook in hooks:
        hook.remove()
    tops = {name: float(np.float16(top / 127)) * 127 for name, top in most.items()}
    return {name: Scheme(weight="int8", input="static", range=(-top, top), signed=True) for name, top in tops.items()}


def expected(model, ids, mask=None):
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(np.ones_like(ids) if mask is None else mask)
        )
    return (out.last_hidden_state if "last_hidden_state" in out else out.logits).numpy()


def off(got, want):
    """The error's root mean square against the answers' own."""
    return float(np.sqrt(np.square(got - want).mean() / np.square(want).mean()))


def profile(name, axis):
    if name.startswith("past_key_values."):
        return {0: (1, 1, 4), 2: (0, 16, 64)}[axis]
    return ((1, 1, 4), (1, 16, 96))[axis]
