"""Ranges of layers' outputs: an int8 product of this format rounds what it answers too."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from exporter.checkpoint.linear import linear_layers


def output_ranges(model: Any, windows: Path, names: Collection[str]) -> dict[str, tuple[float, float]]:
    """The least and the largest output of each of these layers on [windows, window] token ids, 0 between them.

    `model` is the checkpoint's as it is exported; the ids are of the calibration's text, which is not measured on.
    """
    import torch

    found = dict.fromkeys(names, (0.0, 0.0))
    layers = linear_layers(model)

    def watch(name: str) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            low, high = found[name]
            found[name] = min(low, float(output.min())), max(high, float(output.max()))

        return layers[name].register_forward_hook(hook)

    hooks = [watch(name) for name in names]
    with torch.no_grad():
        for ids in np.load(windows):
            model(input_ids=torch.from_numpy(ids[None].astype(np.int64)))
    for one in hooks:
        one.remove()
    return found
