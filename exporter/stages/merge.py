"""Merge adapters into a checkpoint, with PEFT: Checkpoint in, Checkpoint out.

The merge is done and saved in float32, so that nothing is rounded on the way to an artifact's own precision.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from exporter.errors import JobError
from exporter.types import TOKENIZER_FILES

# What PEFT raises when an adapter does not fit: a size mismatch, a target module that is not there, a bad config.
_MISFIT = (RuntimeError, ValueError, KeyError, TypeError)


def merge(model: Any, base: Path, adapters: list[Path], folder: Path) -> list[str]:
    """Merges adapters in order into a float32 transformers model and saves it into an empty folder.

    `base` is where the model came from: its tokenizer is carried over, unless an adapter brings its own. Returns a
    line of history for each adapter. Raises JobError when a tensor of an adapter finds no place, or a place no tensor.
    """
    from peft import PeftModel

    history = []
    for path in adapters:
        try:
            attached = PeftModel.from_pretrained(model, path)
            if not hasattr(attached, "merge_and_unload"):  # prompt and prefix tuning change no weight
                kind = attached.active_peft_config.peft_type.value
                raise JobError(f"the adapter {path} is of PEFT's kind {kind}, which has no weights to merge")
            fit = attached.load_adapter(path, attached.active_adapter, is_trainable=False)
        except _MISFIT as error:
            raise JobError(f"the adapter {path} does not fit this model: {_first_line(error)}") from error
        for kind, keys in (
            ("has no tensor for", fit.missing_keys),
            ("holds tensors that this model lacks:", fit.unexpected_keys),
        ):
            named = [key for key in keys if kind.startswith("holds") or "lora_" in key or "modules_to_save" in key]
            if named:
                raise JobError(
                    f"the adapter {path} is for another model: it {kind} {', '.join(named[:3])}"
                    f"{f' and {len(named) - 3} more' if len(named) > 3 else ''}"
                )
        try:
            model = attached.merge_and_unload(safe_merge=True)
        except ValueError as error:
            raise JobError(f"merging the adapter {path} gives NaN or Inf: {_first_line(error)}") from error
        recorded = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        history.append(f"merged {recorded.get('peft_type', 'adapter')} {path.name} (float32, safe_merge)")
    model.save_pretrained(folder)
    for source in (base, *adapters):
        carry_tokenizer(source, folder)
    return history


def carry_tokenizer(source: Path, folder: Path) -> None:
    """Copies a folder's tokenizer and its chat template, when it has one."""
    if any((source / name).is_file() for name in TOKENIZER_FILES):
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # PyTorch's first line of a size mismatch only names the class; the second one names the tensor.
    return " ".join(lines[:2])[:300] if lines else type(error).__name__
