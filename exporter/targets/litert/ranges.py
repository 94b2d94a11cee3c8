"""Ranges of layers' outputs: an int8 product of this format rounds what it answers too."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from exporter.checkpoint.linear import linear_layers
from exporter.form import PIXELS
from exporter.targets.litert.convert import SEE
from exporter.targets.litert.flatbuffer import read_model
from exporter.targets.litert.places import module_of
from exporter.targets.litert.quantize import products

_LEAST = 1e-6  # of a layer that answers 0 alone


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


def seen_ranges(program: Path, pictures: Path, modules: Collection[str]) -> dict[str, tuple[float, float]]:
    """The same on pictures [n, C, H, W], of a float program as it is run: an activation may be in an operator."""
    from ai_edge_litert.interpreter import Interpreter

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning: Enabling `experimental_preserve_all_tensors`", UserWarning)
        interpreter = Interpreter(str(program), num_threads=1, experimental_preserve_all_tensors=True)
    see = interpreter.get_signature_runner(SEE)
    known = read_model(program)
    places = {module_of(tensor.name.decode()): op.outputs[0] for op, _, tensor in products(known)}
    found = dict.fromkeys(modules, (0.0, _LEAST))
    for picture in np.load(pictures):
        see(**{PIXELS: picture[None]})
        for name in modules:
            output = interpreter.get_tensor(places[name])
            found[name] = min(found[name][0], float(output.min())), max(found[name][1], float(output.max()))
    return found
