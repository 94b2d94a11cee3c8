"""What was found of a float model to choose a policy from, as exporter.quantization.preparing leaves it in a folder.

It names no schemes. What each layer may get follows from it for one precision or another: two that begin with the same
scheme have it in common.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.checkpoint.linear import are_tokens, weight_of
from exporter.quantization.calibrate import FEWEST
from exporter.quantization.layer import Layer
from exporter.quantization.layer_weights import LayerWeights, load_parameters
from exporter.quantization.stacked import Ranges, with_range
from exporter.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

    from exporter.quantization.preparing import How

FACTS, WINDOWS, CHANGED, ROUNDED = "prepared.json", "windows.npy", "changed", "rounded"
_HELD_OUT = 4  # windows at most that nothing is calibrated on: the losses are measured there


@dataclass(frozen=True)
class Shape:
    """What decides which schemes a layer can have: its weight [outputs, inputs], and what kind of layer it is."""

    outputs: int
    inputs: int
    convolution: bool
    head: bool

    @classmethod
    def of(cls, model: Any, module: Any) -> Shape:
        outputs, inputs = weight_of(module).shape
        return cls(outputs, inputs, module.weight.dim() > 2, module is model.get_output_embeddings())

    def fitting(self, schemes: Iterable[Scheme]) -> list[Scheme]:
        """The schemes that the layer can have. The head's errors are the model's own: it never has 4 bits."""
        fitting = [one for one in schemes if one.group is None or self.inputs % one.group == 0]
        if self.convolution:  # no kernel has groups of a convolution's inputs
            fitting = [one for one in fitting if one.group is None and one.weight == "int8"]
        if self.head:
            fitting = [one for one in fitting if one.bits == 8]
        return fitting


def fits_all(scheme: Scheme) -> bool:
    """Whether every layer can have a scheme: what comes after it is no layer's lowest."""
    return scheme.group is None and scheme.weight == "int8"


def copies(how: How) -> int:
    """How many copies of the model's parameters, in float32, the folder that is prepared for `how` holds at most."""
    given = how.policy.modules.values() if how.policy else ()
    asked = [*how.schemes, *(one for one in given if isinstance(one, Scheme))]
    four = any(one.weight == "int4" for one in asked)
    smoothed = (how.smooth and any(one.input == "static" for one in asked)) or (four and how.rounding == "awq")
    return smoothed + (how.rounding != "nearest" and (four or any(one.palette for one in asked)))


@dataclass(frozen=True)
class Prepared:
    """What a folder of exporter.quantization.preparing.prepare holds.

    `layers`: what each linear layer may get, ranges filled in; of a policy that was given, that. `windows` int64
    [windows, window] have been calibrated on, `held_out` have not. `done` says in words what was done to the model.
    """

    folder: Path
    layers: Mapping[str, Layer]
    windows: Tensor
    held_out: Tensor
    done: tuple[str, ...]

    @property
    def changed(self) -> list[Path]:
        """The folder of the parameters that smoothing changed (exporter.quantization.layer_weights), if it did.

        All the others are the checkpoint's own.
        """
        return [self.folder / CHANGED] if (self.folder / CHANGED).is_dir() else []

    def change(self, model: Any) -> None:
        """Makes of the checkpoint's float model the one that was prepared."""
        for folder in self.changed:
            load_parameters(model, folder)

    def lowest(self) -> dict[str, Scheme | None]:
        """What each layer gets where nothing is chosen."""
        return {name: layer.choices[0] for name, layer in self.layers.items()}

    def rounded(self, model: Any) -> Mapping[str, Tensor]:
        """Weights [N, K] on the lowest scheme's grid, where a better method than the nearest value found them."""
        return LayerWeights(model, self.folder / ROUNDED) if (self.folder / ROUNDED).is_dir() else {}

    @classmethod
    def load(cls, folder: Path, how: How) -> Prepared:
        """A folder that was prepared for `how`, or for another whose preparation is the same."""
        import torch

        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        layers = {name: _layer(name, how, found) for name, found in facts["layers"].items()}
        windows = torch.from_numpy(np.load(folder / WINDOWS))
        last = held_out(windows)
        return cls(folder, layers, windows[:-last], windows[-last:], tuple(facts["done"]))


def held_out(windows: Tensor) -> int:
    """How many of the windows, at their end, are held out."""
    most = _HELD_OUT if are_tokens(windows) else len(windows)  # a picture tells as much as a token does
    return min(most, len(windows) // FEWEST)


def dump(shape: Shape, ranges: Mapping[bool, tuple[float, float]]) -> dict[str, Any]:
    """What is known of a layer, for JSON; `ranges` of its static input by whether they are signed."""
    return {"shape": asdict(shape), "ranges": [[signed, *ends] for signed, ends in ranges.items()]}


def _layer(name: str, how: How, found: Mapping[str, Any]) -> Layer:
    shape = Shape(**found["shape"])
    ranges: Ranges = {(name, signed): (low, high) for signed, low, high in found["ranges"]}
    weight = (shape.outputs, shape.inputs)
    if how.policy is not None:
        return Layer(weight, (with_range(name, how.policy.scheme(name), ranges),))
    rungs = [with_range(name, one, ranges) for one in shape.fitting(how.schemes)]
    return Layer(weight, (*rungs, None) if how.mixed or not rungs else (rungs[0],))
