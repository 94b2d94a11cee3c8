"""A text's vector from the model's hidden states, as the model's own modules make it: modules.json in this folder.

What the modules do is sentence-transformers'. Without modules.json a vector is the mean of the states.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
# In the order in which sentence-transformers joins them, where a model asks for several.
MODES = {
    "cls_token": lambda states: states[0],
    "max_tokens": lambda states: states.max(axis=0),
    "mean_tokens": lambda states: states.mean(axis=0),
    "mean_sqrt_len_tokens": lambda states: states.sum(axis=0) / np.sqrt(len(states)),
    "weightedmean_tokens": lambda states: np.average(states, axis=0, weights=np.arange(1, len(states) + 1)),
    "lasttoken": lambda states: states[-1],
}
SHORT = {name.removesuffix("_tokens").removesuffix("_token"): name for name in MODES}
ACTIVATIONS = {
    "Identity": lambda vector: vector,
    "ReLU": lambda vector: np.maximum(vector, 0),
    "Sigmoid": lambda vector: 1 / (1 + np.exp(-vector)),
    "Tanh": np.tanh,
}


class Pooling:
    """`text` is what the tokenizer gets of a text, `vector` what becomes of its hidden states [tokens, H]."""

    def __init__(self, folder: Path) -> None:
        listed = sorted(read(folder / "modules.json", []), key=lambda one: int(one["idx"]))
        self.steps = [(str(one["type"]).rpartition(".")[2], folder / str(one["path"])) for one in listed]
        settings = read(folder / "sentence_bert_config.json", {})
        asked = read(folder / "config_sentence_transformers.json", {})
        self.prompt = (asked.get("prompts") or {}).get(asked.get("default_prompt_name") or "") or ""
        self.lower = bool(settings.get("do_lower_case"))
        longest = read(folder / "tokenizer_config.json", {}).get("model_max_length")
        room = read(folder / "config.json", {}).get("max_position_embeddings")
        limits = [settings.get("max_seq_length"), longest, None if longest else room]
        # Tokens that are read of a text; a tokenizer without a limit of its own says 10^30.
        self.limit = min((int(one) for one in limits if one and one < 1 << 20), default=None)

    def text(self, text: str) -> str:
        whole = (self.prompt + text).strip()
        return whole.lower() if self.lower else whole

    def vector(self, states: Floats) -> Floats:
        out = states
        if not self.steps:
            return states.mean(axis=0)
        for kind, path in self.steps:
            if kind == "Pooling":
                out = np.concatenate([pool(states) for pool in modes(read(path / "config.json", {}))])
            elif kind == "Dense":
                out = dense(path, out)
            elif kind == "Normalize":
                out = out / max(float(np.linalg.norm(out)), 1e-12)
            elif kind not in ("Transformer", "Dropout"):  # the model itself; and what does nothing once it is trained
                raise NotImplementedError(f"modules.json has a {kind}, which this program does not know")
        return out.astype(np.float32)


def modes(settings: dict[str, Any]) -> list[Any]:
    """The ways of pooling that a Pooling's config.json asks for, in either form that it is written in."""
    said = settings.get("pooling_mode")
    if said is None:
        names = {name.removeprefix("pooling_mode_") for name, on in settings.items() if on is True and "_mode_" in name}
    else:
        names = {SHORT.get(one, one) for one in (said if isinstance(said, list) else [said])}
    if not names or names - set(MODES):
        raise NotImplementedError(f"the model pools by {sorted(names)}, which this program does not know")
    return [pool for name, pool in MODES.items() if name in names]


def dense(folder: Path, vector: Floats) -> Floats:
    from safetensors.numpy import load_file  # pip install safetensors; few models have this module

    weights = {name.removeprefix("linear."): value for name, value in load_file(folder / "model.safetensors").items()}
    out = weights["weight"].astype(np.float32) @ vector
    if "bias" in weights:
        out = out + weights["bias"].astype(np.float32)
    name = str(read(folder / "config.json", {}).get("activation_function", "Tanh")).rpartition(".")[2]
    return ACTIVATIONS[name](out)


def read(file: Path, missing: Any) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else missing
