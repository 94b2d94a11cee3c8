"""From what the user named (a folder, a recipe, a hub id) to a checked Checkpoint. Nothing here imports torch."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exporter import cache
from exporter.checkpoint.quantization_config import scheme_of
from exporter.checkpoint.recipes import RECIPES, Recipe
from exporter.checkpoint.weights import again
from exporter.errors import JobError, unknown
from exporter.store import content_key, one_maker, publish, reusable, used, write_manifest

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
# Weights of other frameworks, and pickles; all else may be part of the model, as sentence-transformers' modules are.
_UNWANTED = (
    "pytorch_model*", "tf_model*", "flax_model*", "rust_model*", "consolidated*", "*.pt", "*.pth", "*.ckpt", "*.pkl",
    "*.h5", "*.msgpack", "*.ot", "*.gguf", "*.onnx", "*.onnx_data", "*.tflite", "*.nemo", "onnx/*", "openvino/*",
    "coreml/*", "original/*", "checkpoint-*", "global_step*", "training_args.bin",
)  # fmt: skip

_ONLY_ADAPTER = "{} is an adapter, not a model; give its base with -m and this with --adapter"


def is_recipe(model: str) -> Recipe | None:
    """The recipe of that name, unless a folder of the same name lies here."""
    return RECIPES.get(model) if not Path(model).is_dir() else None


def locate(model: str, offline: bool) -> Path:
    """The folder of a model on this machine; a hub id is downloaded unless `offline`. Raises JobError."""
    recipe = is_recipe(model)
    if recipe is not None:
        return prepared(recipe) or recipe.folder()
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise JobError(f"{model} is a file; give the checkpoint's folder")
    if not _HUB_ID.match(model) or model.startswith((".", "/", "~")):
        raise JobError(f"no such folder: {model}, and {unknown('recipe', model, RECIPES)} (or give a hub id, ORG/NAME)")
    return _download(model, offline)


def prepared(recipe: Recipe) -> Path | None:
    """The checkpoint that was made of a recipe's file, when the cache holds it whole."""
    if recipe.converted is None:
        return None
    folder = _prepared_folder(recipe)
    used(folder)
    return folder if reusable(folder, _recipe_key(recipe)) is not None else None


def prepare(recipe: Recipe, waiting: Callable[[str], None]) -> Path:
    """Makes a checkpoint of a recipe's file in the cache, unless it is there (torch is needed: call it in a worker)."""
    from exporter.checkpoint.recipes import convert

    folder = _prepared_folder(recipe)
    with one_maker(folder, waiting):
        if prepared(recipe) is None:
            with publish(folder) as building:
                convert(recipe, building)
                write_manifest(building, _recipe_key(recipe), ["model.safetensors"], {"recipe": recipe.name})
    return folder


def _prepared_folder(recipe: Recipe) -> Path:
    return cache.RECIPES.entry(recipe.name)


def _recipe_key(recipe: Recipe) -> str:
    source = recipe.folder() / (recipe.converted or "")
    return content_key(["recipe with digits", recipe.name, source.stat().st_size, source.name])


def _download(model: str, offline: bool) -> Path:
    offline = offline or os.environ.get("HF_HUB_OFFLINE") == "1"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(model, ignore_patterns=list(_UNWANTED), local_files_only=offline))
    except RepositoryNotFoundError as error:
        raise JobError(f"no model {model} on the hub, or it is private: log in with 'hf auth login'") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        if offline:
            raise JobError(
                f"{model} is not a folder here nor in the hub's cache, and --offline forbids the hub; download it "
                f"first (hf download {model}), or drop --offline"
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise JobError(
            f"no folder {model} here, and no download from the hub ({reason}); check the path or the network"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint's folder. Raises JobError."""
    refuse_adapter_beside(folder)
    path = folder / "config.json"
    if not path.is_file():
        if (folder / "adapter_config.json").is_file():
            raise JobError(_ONLY_ADAPTER.format(folder))
        raise JobError(f"{folder} has no config.json: it is not a Hugging Face checkpoint")
    config = _read_json(path)
    if (other := config.get("transformers_weights")) not in (None, "model.safetensors"):
        raise JobError(f"{path} has transformers read {other} for the weights; rename that file to model.safetensors")
    return config


def refuse_adapter_beside(folder: Path) -> None:
    """Refuses a model with an adapter in its folder, which transformers applies whenever it loads the model.

    A merged model that was saved where its adapter lies would so get it a second time. Raises JobError.
    """
    if not ((folder / "adapter_config.json").is_file() and (folder / "config.json").is_file()):
        return
    patterns = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors", "pytorch_model*.bin")
    if not any(found for pattern in patterns for found in folder.glob(pattern)):
        raise JobError(_ONLY_ADAPTER.format(folder))
    apart = Path(f"{folder.absolute()}-adapter")
    here, there = shlex.quote(str(folder)), shlex.quote(str(apart))
    raise JobError(
        f"{folder} holds a model and an adapter (adapter_config.json), which transformers applies by itself when it "
        "loads the model, a second time where it is merged already: take it out: "
        f"mkdir {there} && cp -L {here}/adapter_* {there} && rm {here}/adapter_*; where it is not merged yet, "
        f"add --adapter {there}"
    )


def code_beside(folder: Path, config: dict[str, Any]) -> list[str]:
    """The Python files of a folder that its config.json's auto_map names."""
    named = (str(value).partition(".")[0] + ".py" for value in (config.get("auto_map") or {}).values())
    return sorted({name for name in named if (folder / name).is_file()})


def check_config(model: str, folder: Path, config: dict[str, Any], trust: bool, quantized: bool = False) -> None:
    """Refuses what a configuration says that cannot be worked with, before transformers acts on it. Raises JobError.

    `quantized`: it will be dequantized.
    """
    if code_beside(folder, config) and not trust:
        raise JobError(f"{model} brings Python code of its own; read it, then run again with --trust-remote-code")
    method = scheme_of(config)
    if method is not None and not quantized:
        raise JobError(
            f"{model} is quantized already ({method}); give the float checkpoint that it was made from, or the adapter "
            "that was trained on it with --adapter"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobError(f"{path} is not valid JSON ({error}); {again(path.parent)}") from error
    if not isinstance(value, dict):
        raise JobError(f"{path} does not hold a JSON object; {again(path.parent)}")
    return value
