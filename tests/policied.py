"""Small models of several kinds, exported to ONNX under a policy, and what they answer: for the tests of that."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import torch

from exporter.checkpoint.linear import linear_layers
from exporter.quantization.bias_correction import round_biases
from exporter.quantization.grid import rounded
from exporter.scheme import Scheme
from exporter.targets.onnx_graph.session import OnnxDecoder, OnnxRunner
from exporter.types import CLASSIFICATION, FEATURES, GENERATION, TOKENIZER_FILES

TINY = Path(__file__).resolve().parent.parent / "models" / "tiny"
INT8, INT4 = Scheme(weight="int8", group=32), Scheme(weight="int4", group=32, symmetric=False)
VOCABULARY = 120  # of the random models


def random_model(folder: Path, kind: str) -> tuple[Path, str]:
    """A small model with random weights in every layer, saved; and its task."""
    import transformers as t

    torch.manual_seed(0)
    if kind == "gpt2":  # Conv1D, stored [K, N], and biases
        config = t.GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=64)
        model, task = t.GPT2LMHeadModel(config), GENERATION
    elif kind == "phi3":  # query, key and value stacked in the checkpoint, gate and up too
        config = t.Phi3Config(
            vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, original_max_position_embeddings=64, pad_token_id=0,
            tie_word_embeddings=False,
        )  # fmt: skip
        model, task = t.Phi3ForCausalLM(config), GENERATION
        for name in TOKENIZER_FILES:
            if (TINY / name).is_file():
                shutil.copyfile(TINY / name, folder / name)
    else:
        config = t.BertConfig(
            vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64,
        )  # fmt: skip
        classifier = kind == "bert-classifier"
        model = (t.BertForSequenceClassification if classifier else t.BertModel)(config)
        task = CLASSIFICATION if classifier else FEATURES
    with torch.no_grad():
        for parameter in model.parameters():  # weights of 0.02 would leave the activations next to nothing
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder, task


def windows(kind: str, count: int = 4, length: int = 48) -> torch.Tensor:
    if kind == "tiny":
        from transformers import AutoTokenizer

        text = (TINY / "calib.txt").read_text(encoding="utf-8")[: count * length * 8]
        ids = AutoTokenizer.from_pretrained(TINY)(text)["input_ids"][: count * length]
        return torch.tensor(ids).reshape(count, length)
    return torch.randint(3, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(1))


def static_policy(model, ids, symmetric=False) -> dict[str, Scheme]:
    """Every linear layer int8 per channel, with the range of its inputs on `ids`."""
    seen: dict[str, tuple[float, float]] = {}

    def watch(name):
        def hook(module, inputs):
            low, high = seen.get(name, (0.0, 0.0))
            seen[name] = (min(low, inputs[0].min().item()), max(high, inputs[0].max().item()))

        return hook

    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in linear_layers(model).items()]
    with torch.no_grad():
        model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    top = {name: max(-low, high) for name, (low, high) in seen.items()}
    ranges = {name: (-top[name], top[name]) for name in seen} if symmetric else seen
    return {name: Scheme(weight="int8", input="static", range=ranges[name]) for name in seen}


def round_the_rest(model, policy) -> None:
    """What a simulation does not speak of: what is only looked up gets 8 bits, and biases are added as integers."""
    round_biases(model, policy)
    products = {id(layer.weight) for layer in linear_layers(model).values()}
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and id(module.weight) not in products:
            module.weight.data.copy_(rounded(module.weight.data.clone(), INT8))


def answers(model, ids: torch.Tensor, mask: torch.Tensor | None = None) -> np.ndarray:
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids) if mask is None else mask)
    return (out.last_hidden_state if "last_hidden_state" in out else out.logits).numpy()


def run(kind: str, model: Path, ids: torch.Tensor, mask: torch.Tensor | None = None) -> np.ndarray:
    runner = (OnnxDecoder if kind in ("tiny", "gpt2", "phi3") else OnnxRunner)(model, 1)
    with runner:
        return runner.batch(ids.numpy(), (torch.ones_like(ids) if mask is None else mask).numpy())


def rms(difference: np.ndarray) -> float:
    return float(np.sqrt(np.square(difference).mean()))


def operators(model: Path) -> Counter:
    return Counter(node.op_type for node in onnx.load(model).graph.node)
