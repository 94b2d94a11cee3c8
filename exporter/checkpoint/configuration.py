"""config.json after a stage: the file that the checkpoint came with, and in it what the stage changed.

transformers writes a configuration in its own release's form, and another release reads that without an error and
without what it knows by another name: transformers 4 finds no rope_theta in the rope_parameters of transformers 5. So
the base's file stays as it stands, keys that nobody here knows included.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_DTYPES = ("dtype", "torch_dtype")  # transformers 5 writes the first, 4 the second, and both read both
# Who wrote a file, and what is in it by another rule: not compared.
_APART = (*_DTYPES, "transformers_version", "_name_or_path", "num_labels")
_NOTHING = object()


def keep_configuration(base: Path, folder: Path, config: Any, dtype: str | None) -> str | None:
    """Writes the base's config.json into `folder`, where transformers has saved `config`, changed as that one is.

    `dtype`: torch's name of what the weights were saved in, as from_pretrained is to load them; None: as the file says.
    Returns a line of history where the base's file cannot say what was changed: then transformers' own stays.
    """
    path, kind = folder / "config.json", type(config)
    before, after = _read(kind, base), _read(kind, folder)
    file = _own_part(json.loads((base / "config.json").read_text(encoding="utf-8")), kind, after)
    if file is None:
        return f"config.json is transformers' own: the base's is not of a {after.get('model_type')}"
    saved = path.read_text(encoding="utf-8")
    _change(file, before, after, _aliases(config))
    if dtype is not None:
        set_dtype(file, dtype)
    path.write_text(json.dumps(file, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if _compared(_read(kind, folder)) == _compared(after):
        return None
    path.write_text(saved, encoding="utf-8")
    return "config.json is transformers' own: in the base's form it would not say what was changed"


def correct_ties(model: Any) -> str | None:
    """Has a loaded model's configuration say of its input and output embeddings what its weights are; returns a line of
    history where it said otherwise.

    transformers 5 does not tie two that differ, whatever the file says, and 4 puts one in the other's place.
    """
    last = model.get_output_embeddings()
    if last is None:  # a model of pictures may not say what its input embedding is
        return None
    first = model.get_input_embeddings()
    if not hasattr(first, "weight") or first.weight is last.weight:
        return None
    wrong = [one for one in {id(c): c for c in (model.config, model.config.get_text_config())}.values()
             if one.tie_word_embeddings]  # fmt: skip
    for one in wrong:
        one.tie_word_embeddings = False
    return (
        "tie_word_embeddings is false now: the weights hold two embeddings, and config.json tied them"
        if wrong
        else None
    )


def _read(kind: Any, folder: Path) -> dict[str, Any]:
    """A folder's configuration with all defaults, as JSON has it."""
    read: dict[str, Any] = json.loads(kind.from_pretrained(folder).to_json_string(use_diff=False))
    return read


def _own_part(file: dict[str, Any], kind: Any, after: Mapping[str, Any]) -> dict[str, Any] | None:
    """What of a file describes the model that was saved: all of it, or the text part's section where that was saved."""
    name = after.get("model_type")  # a class that comes with a model may name none
    if not name or file.get("model_type", name) == name:
        return file
    part = file.get(getattr(kind, "base_config_key", ""))
    return dict(part) if isinstance(part, dict) else None


def _aliases(config: Any) -> dict[str, str]:
    """The names that a file may have for what a class calls otherwise: n_layer, by num_hidden_layers."""
    return {name: alias for alias, name in (getattr(config, "attribute_map", None) or {}).items()}


def _change(file: dict[str, Any], before: Mapping[str, Any], after: Mapping[str, Any], aliases: dict[str, str]) -> None:
    """Makes the changes between two configurations to a file that says the first."""
    for key in before.keys() - after.keys() - {*_APART}:
        file.pop(key, None)
    for key, value in after.items():
        old = before.get(key, _NOTHING)
        if key in _APART or old == value:
            continue
        if (
            isinstance(file.get(key), dict)
            and isinstance(old, dict)
            and isinstance(value, dict)
            and "model_type" in old
        ):
            _change(file[key], old, value, {})
        elif key not in file and aliases.get(key) in file:
            file[aliases[key]] = value
        else:
            file[key] = value
    if "num_labels" in file and "id2label" in after:  # transformers takes it from the names of the labels
        file["num_labels"] = len(after["id2label"])


def set_dtype(file: dict[str, Any], dtype: str) -> None:
    """Names the weights' dtype where a file names one, in its parts too; one that names none is read right."""
    for key in _DTYPES:
        if isinstance(file.get(key), str):
            file[key] = dtype
    for part in file.values():
        if isinstance(part, dict) and "model_type" in part:
            set_dtype(part, dtype)


def _compared(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _compared(value) if isinstance(value, dict) and "model_type" in value else value
        for key, value in config.items()
        if key not in _APART
    }
