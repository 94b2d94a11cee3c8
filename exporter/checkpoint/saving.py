"""A changed model as an ordinary checkpoint, which holds what was meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporter.checkpoint.configuration import keep_configuration
from exporter.checkpoint.model import Load
from exporter.errors import BuildError


def save_float32(model: Any, base: Path, load: Load, folder: Path, what: str) -> None:
    """Saves a model that was made of `base` in float32, its configuration included, and loads it again.

    Raises BuildError where a checkpoint does not hold what was saved: loading fills in what a file lacks. `what`: what
    was done to it, such as "pruned".
    """
    import torch

    model.config.dtype = torch.float32
    model.save_pretrained(folder)
    keep_configuration(base, folder, model.config, "float32")
    saved, loaded = model.state_dict(), load(folder).state_dict()
    wrong = [name for name in saved.keys() | loaded.keys() if name not in saved or name not in loaded]
    wrong += [name for name in saved if name not in wrong and not torch.equal(saved[name], loaded[name])]
    if wrong:
        raise BuildError(f"the {what} {type(model).__name__} is another when it is loaded again: {sorted(wrong)[0]}")
