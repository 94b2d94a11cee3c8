"""What a checkpoint's folder holds besides weights and configuration: tokenizer, templates, modules, code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exporter.store import content_key, read_manifest, sha256_file
from exporter.types import TOKENIZER_FILES

_TEMPLATES = ("chat_template.jinja", "chat_template.json")
_MORE_TEMPLATES = "additional_chat_templates"
_WORDS = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt", "vocab.json")
# Weights of any framework, what training leaves beside them, and pickles, which can run code when they are read.
_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".distcp", ".h5", ".keras",
    ".msgpack", ".ot", ".pdparams", ".nemo", ".gguf", ".ggml", ".onnx", ".onnx_data", ".onnx.data", ".tflite",
    ".mlmodel", ".engine", ".plan", ".index.json",
)  # fmt: skip
_MODEL = ("config.json", "adapter_config.json", "openvino_model.xml")  # beside weights in a subfolder: another model
# Of the weights that were: configurations of quantizers, and what exporter wrote beside them.
_OWN = ("config.json", "quantize_config.json", "quant_config.json", "manifest.json")
# sentence-transformers: what follows the transformer, and the settings of the whole.
MODULES = "modules.json"
_SENTENCES = (MODULES, "config_sentence_transformers.json", "sentence_bert_config.json")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer's words. Settings and special tokens without them are half of one."""
    return any((folder / name).is_file() for name in _WORDS)


def tokenizer_folder(base: Path, adapters: list[Path]) -> Path:
    """Whose tokenizer the merged model gets: the last adapter's that has one, or the base's."""
    return next((path for path in reversed(adapters) if has_tokenizer(path)), base)


def carry(base: Path, adapters: list[Path], folder: Path) -> None:
    """Copies into `folder` what the model has besides its weights and its config.json."""
    for source in (base, *adapters):  # a module without settings is an empty folder
        for part in module_folders(source):
            (folder / part).mkdir(exist_ok=True)
    for name, source in carried(base, adapters, folder).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / name)


def carried_sha256(base: Path, adapters: list[Path]) -> str:
    """One hash over the names and contents of what `carry` copies."""
    return content_key({name: sha256_file(source) for name, source in carried(base, adapters).items()})


def carried(base: Path, adapters: list[Path], into: Path | None = None) -> dict[str, Path]:
    """What travels with a merged model, as {name in its folder: file}: all that the base's folder has but weights.

    Subfolders as well, those of a checkpoint of their own apart. The last adapter's tokenizer, its chat templates and
    its modules after the transformer win, where it has them: they are what was trained. A tokenizer is taken whole from
    one folder, as are the modules: files of two would not fit each other. `into`: the folder that is not looked into.
    """
    found = {name: path for name, path in _files(base, into) if name not in TOKENIZER_FILES}
    owner = tokenizer_folder(base, adapters)
    found |= {name: owner / name for name in TOKENIZER_FILES if (owner / name).is_file()}
    if not _has_template(owner):
        for source in (*reversed(adapters), base):
            if held := [name for name in _TEMPLATES if (source / name).is_file()]:
                found[held[0]] = source / held[0]
                owner = source
                break
    if owner != base and _has_template(owner):
        found = {name: path for name, path in found.items() if not name.startswith(f"{_MORE_TEMPLATES}/")}
        found |= dict(_below(owner / _MORE_TEMPLATES, _MORE_TEMPLATES))
    trained = next((path for path in reversed(adapters) if (path / MODULES).is_file()), None)
    if trained is not None:
        parts = {*module_folders(base), *module_folders(trained)}
        found = {name: path for name, path in found.items() if name.partition("/")[0] not in parts}
        found |= {name: trained / name for name in _SENTENCES if (trained / name).is_file()}
        for part in module_folders(trained):
            found |= dict(_below(trained / part, part))
    return found


def module_folders(folder: Path) -> list[str]:
    """The subfolders of the modules that a sentence-transformers folder runs after the transformer, in their order."""
    try:
        modules: Any = json.loads((folder / MODULES).read_text(encoding="utf-8"))
        paths = [str(module["path"]) for module in modules]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [path for path in paths if path and Path(path).name == path and (folder / path).is_dir()]


def _files(base: Path, into: Path | None) -> Iterator[tuple[str, Path]]:
    """(name, file) of what is not weights; of the modules after a transformer all, weights as well: they are the model.

    Hidden files are the system's, git's or another program's.
    """
    whole = module_folders(base)
    for path in sorted(base.iterdir()):
        if path.is_file() and path.name not in _OWN and not _is_apart(path):
            yield path.name, path
        elif path.is_dir() and path.name in whole:
            yield from _below(path, path.name)
        elif path.is_dir():
            yield from _plain_below(path, path.name, into, ())


def _plain_below(folder: Path, name: str, into: Path | None, above: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    real = folder.resolve()
    if real in above or folder.name.startswith(".") or folder.name == "__pycache__" or _is_another(folder, real, into):
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _plain_below(path, f"{name}/{path.name}", into, (*above, real))
        elif path.is_file() and not _is_apart(path):
            yield f"{name}/{path.name}", path


def _below(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield f"{name}/{path.relative_to(folder).as_posix()}", path


def _is_apart(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower().endswith(_WEIGHTS)


def _is_another(folder: Path, real: Path, into: Path | None) -> bool:
    """Whether a subfolder is a checkpoint, an export or a result of its own, or what is being written lies in it."""
    if into is not None and into.resolve().is_relative_to(real):
        return True
    if read_manifest(folder) is not None or ((folder / "report.json").is_file() and (folder / "job.json").is_file()):
        return True
    weights = any(path.is_file() and path.name.lower().endswith(_WEIGHTS) for path in folder.iterdir())
    return weights and any((folder / name).is_file() for name in _MODEL)


def _has_template(folder: Path) -> bool:
    if any((folder / name).is_file() for name in _TEMPLATES):
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))
