"""How a sentence-transformers folder makes a text's vector of hidden states: its Pooling, Dense and Normalize modules.

modules.json lists them; each has a folder with a config.json. What they compute is sentence-transformers' own
(sentence_transformers.models), of one unpadded text at a time. Without modules.json a vector is the mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import JobError
from exporter.runner import Floats
from exporter.store import sha256_file

MODULES = "modules.json"
EMBEDDING = "embedding.npz"  # beside the reference's answers
_MODES = (  # in the order in which sentence-transformers joins them
    ("cls_token", lambda states: states[0]),
    ("max_tokens", lambda states: states.max(axis=0)),
    ("mean_tokens", lambda states: states.mean(axis=0)),
    ("mean_sqrt_len_tokens", lambda states: states.sum(axis=0) / np.sqrt(len(states))),
    ("weightedmean_tokens", lambda states: np.average(states, axis=0, weights=np.arange(1, len(states) + 1))),
    ("lasttoken", lambda states: states[-1]),
)
_ACTIVATIONS: Mapping[str, Callable[[Floats], Floats]] = {
    "Tanh": np.tanh,
    "Identity": lambda vector: vector,
    "ReLU": lambda vector: np.maximum(vector, 0),
    "Sigmoid": lambda vector: np.reciprocal(1 + np.exp(-vector)).astype(np.float32),
}


@dataclass(frozen=True)
class Embedding:
    """`modules` in their order, each as JSON (kind and settings); `weights` of the Dense ones by "number.name".

    `prefix` is put before each text, `lower` makes it lower case, and no more than `max_length` tokens are read: what
    the folder's own settings do.
    """

    modules: tuple[dict[str, Any], ...]
    weights: Mapping[str, Floats] = field(default_factory=dict)
    prefix: str = ""
    lower: bool = False
    max_length: int | None = None

    def vector(self, states: Floats) -> Floats:
        """The vector [D] of a text's hidden states [T, H]."""
        out = states
        for number, module in enumerate(self.modules):
            if module["kind"] == "Pooling":
                out = np.concatenate([pool(out) for name, pool in _MODES if name in module["modes"]])
            elif module["kind"] == "Dense":
                out = self.weights[f"{number}.weight"] @ out
                if f"{number}.bias" in self.weights:
                    out = out + self.weights[f"{number}.bias"]
                out = _ACTIVATIONS[module["activation"]](out)
            else:
                out = out / max(float(np.linalg.norm(out)), 1e-12)
        return out.astype(np.float32)

    def read(self, text: str) -> str:
        """A text as it goes to the tokenizer."""
        whole = (self.prefix + text).strip()
        return whole.lower() if self.lower else whole

    def words(self) -> str:
        """In a line: mean_tokens, Dense (Tanh), Normalize."""
        told = []
        for one in self.modules:
            dense = f"Dense ({one['activation']})" if one["kind"] == "Dense" else "Normalize"
            told.append("+".join(one["modes"]) if one["kind"] == "Pooling" else dense)
        return ", ".join([*told, *([f"after the prompt {self.prefix!r}"] if self.prefix else [])])

    def save(self, path: Path) -> None:
        told = {"modules": self.modules, "prefix": self.prefix, "lower": self.lower, "max_length": self.max_length}
        arrays: dict[str, Any] = {"told": np.array(json.dumps(told)), **self.weights}
        np.savez(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> Embedding:
        with np.load(path, allow_pickle=False) as data:
            told = json.loads(str(data["told"]))
            weights = {name: data[name] for name in data.files if name != "told"}
        return cls(tuple(told.pop("modules")), weights, **told)


def read_embedding(folder: Path) -> Embedding | None:
    """The modules of a sentence-transformers folder; None where it is none. Raises JobError for others."""
    if not (folder / MODULES).is_file():
        return None
    modules: list[dict[str, Any]] = []
    weights: dict[str, Floats] = {}
    left_out = False
    for listed in sorted(_json(folder / MODULES), key=lambda one: int(one["idx"])):
        kind, path = str(listed["type"]).rpartition(".")[2], folder / str(listed["path"])
        if kind in ("Transformer", "Dropout"):  # the model itself; and what does nothing once trained
            continue
        settings = _json(path / "config.json") if kind != "Normalize" else {}
        if kind == "Pooling":
            modules.append({"kind": kind, "modes": _modes(path, settings)})
            left_out = not settings.get("include_prompt", True)
        elif kind == "Dense":
            activation = str(settings.get("activation_function", "Tanh")).rpartition(".")[2]
            if activation not in _ACTIVATIONS:
                raise JobError(f"{path} has the activation {activation}; measured are {', '.join(_ACTIVATIONS)}")
            for name, tensor in _tensors(path).items():
                weights[f"{len(modules)}.{name.removeprefix('linear.')}"] = tensor
            if f"{len(modules)}.weight" not in weights:
                raise JobError(f"{path} has no linear.weight: its Dense module cannot be measured")
            modules.append({"kind": kind, "activation": activation})
        elif kind == "Normalize":
            modules.append({"kind": kind})
        else:
            raise JobError(
                f"{folder / MODULES} has a module {listed['type']}, which is not measured: Pooling, Dense and "
                f"Normalize are; without {MODULES} the mean of the hidden states is"
            )
    if not modules or modules[0]["kind"] != "Pooling":
        raise JobError(f"{folder / MODULES} has no Pooling after the model: nothing makes a vector of a text's states")
    asked = _settings(folder, "config_sentence_transformers.json")
    reading = _settings(folder, "sentence_bert_config.json")
    prefix = (asked.get("prompts") or {}).get(asked.get("default_prompt_name") or "") or ""
    if prefix and left_out:
        raise JobError(f"{folder} pools without its prompt {prefix!r}, which is not measured")
    limit = reading.get("max_seq_length")
    return Embedding(tuple(modules), weights, prefix, bool(reading.get("do_lower_case")), limit and int(limit))


def module_files(folder: Path) -> list[str]:
    """The files of its modules besides the model's own, relative to the folder; they travel with an artifact."""
    names = [MODULES, "config_sentence_transformers.json", "sentence_bert_config.json"]
    folders = [folder / str(one["path"]) for one in _json(folder / MODULES) if str(one["path"])]
    inside = [path.relative_to(folder).as_posix() for one in folders for path in one.rglob("*") if path.is_file()]
    return [*(name for name in names if (folder / name).is_file()), *sorted(inside)]


def modules_identity(folder: Path) -> list[tuple[str, str]]:
    """What decides how vectors are made: each file of the modules with its hash."""
    return [(name, sha256_file(folder / name)) for name in module_files(folder)]


def _modes(path: Path, settings: Mapping[str, Any]) -> list[str]:
    said = settings.get("pooling_mode")
    names = [name for name, _ in _MODES]
    if said is not None:  # how its newer versions write it
        short = {name.removesuffix("_tokens").removesuffix("_token"): name for name in names}
        asked = said if isinstance(said, list | tuple) else [said]
        modes = [short.get(str(one), str(one)) for one in asked]
    else:
        modes = [name.removeprefix("pooling_mode_") for name, on in settings.items() if on is True and "_mode_" in name]
    if not modes or set(modes) - set(names):
        raise JobError(f"{path / 'config.json'} pools by {modes or 'nothing'}; measured are {', '.join(names)}")
    return [name for name in names if name in modes]


def _tensors(path: Path) -> dict[str, Floats]:
    if (path / "model.safetensors").is_file():
        from safetensors.numpy import load_file

        return {name: tensor.astype(np.float32) for name, tensor in load_file(path / "model.safetensors").items()}
    if (path / "pytorch_model.bin").is_file():
        import torch

        stored = torch.load(path / "pytorch_model.bin", map_location="cpu", weights_only=True)
        return {name: tensor.float().numpy() for name, tensor in stored.items()}
    raise JobError(f"{path} has no model.safetensors: copy the whole sentence-transformers folder")


def _settings(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = _json(folder / name) if (folder / name).is_file() else {}
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobError(f"{path} cannot be read ({error}): copy the whole sentence-transformers folder") from error
