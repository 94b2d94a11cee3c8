"""What one variant's policy is chosen from: smoothed weights, ranges and rounded weights, found once, kept in files.

A mix of schemes is chosen of it (exporter.quantization.quantizing), perhaps several times, in other processes: while an
artifact is exported and measured, no memory is held for the case that another mix must be chosen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.checkpoint.experts import expert_layers, split_experts
from exporter.checkpoint.linear import amount, are_tokens, convolutions, linear_layers, weight_of, weighted_layers
from exporter.checkpoint.tokenizer import check_ids, rows_of
from exporter.progress import Step, counting, halves
from exporter.quantization.calibrate import FEWEST, policy_windows
from exporter.quantization.folds import Fold, find_folds
from exporter.quantization.input_rows import input_rows
from exporter.quantization.layer import Layer
from exporter.quantization.layer_weights import LayerWeights, save_parameters, save_weights
from exporter.quantization.palette import palettized
from exporter.quantization.policy import Policy
from exporter.quantization.sensitivity import input_groups
from exporter.quantization.stacked import FEW, Ranges, with_range, with_stacks
from exporter.quantization.statistics import Statistics, collect
from exporter.scheme import Scheme
from exporter.types import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

_HELD_OUT = 4  # windows at most that nothing is calibrated on: the losses are measured there
_HESSIANS = 1 << 29  # bytes of GPTQ's matrices at a time
_ROW_WINDOWS = 16  # spread over the text: a few hundred rows of a layer's inputs are taken from them
_FACTS, _WINDOWS, _FLOAT, _ROUNDED = "prepared.json", "windows.npy", "float", "rounded"  # what the folder holds


@dataclass(frozen=True)
class How:
    """How a policy is made. `schemes`: what a layer may get, cheapest first; float is the last resort where `mixed`.

    `policy`: given, so that nothing is chosen; ranges that it leaves out are found. `ranges_per_octave` and the rest
    as in exporter.types.Precision and Target: those that are no layers of a target's policies stay in float.
    """

    schemes: tuple[Scheme, ...]
    mixed: bool
    ranges: str
    smooth: bool
    rounding: str
    policy: Policy | None = None
    ranges_per_octave: int | None = None
    rounds_outputs: bool = False
    sensitivity: str = "estimated"  # or "measured"
    policy_cost: str = "size"  # or "latency"
    experts: bool = False
    convolutions: bool = False

    @classmethod
    def load(cls, values: Mapping[str, Any]) -> How:
        schemes = tuple(Scheme.model_validate(one) for one in values["schemes"])
        policy = None if values["policy"] is None else Policy.model_validate(values["policy"])
        return cls(**{**values, "schemes": schemes, "policy": policy})


@dataclass(frozen=True)
class Prepared:
    """What a folder of `prepare` holds.

    `layers`: what each linear layer may get, ranges filled in; of a policy that was given, that. `windows` int64
    [windows, window] have been calibrated on, `held_out` have not. `done` says in words what was done to the model.
    """

    folder: Path
    layers: Mapping[str, Layer]
    windows: Tensor
    held_out: Tensor
    done: tuple[str, ...]

    @property
    def parameters(self) -> Path:
        """The folder of the float model's parameters (exporter.quantization.layer_weights), smoothed."""
        return self.folder / _FLOAT

    def lowest(self) -> dict[str, Scheme | None]:
        """What each layer gets where nothing is chosen."""
        return {name: layer.choices[0] for name, layer in self.layers.items()}

    def rounded(self, model: Any) -> Mapping[str, Tensor]:
        """Weights [N, K] on the lowest scheme's grid, where a better method than the nearest value found them."""
        return LayerWeights(model, self.folder / _ROUNDED) if (self.folder / _ROUNDED).is_dir() else {}

    @classmethod
    def load(cls, folder: Path) -> Prepared:
        import torch

        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        layers = {name: Layer.load(values) for name, values in facts["layers"].items()}
        windows = torch.from_numpy(np.load(folder / _WINDOWS))
        held_out = _held_out(windows)
        return cls(folder, layers, windows[:-held_out], windows[-held_out:], tuple(facts["done"]))


def prepare(checkpoint: Checkpoint, how: How, threads: int, step: Step, folder: Path, **text: Any) -> None:
    """Calibrates the float model, and writes what is found into an empty folder, for Prepared.load.

    `text` is what exporter.quantization.calibrate's windows are made of.
    """
    import torch

    from exporter.checkpoint.model import load_model

    torch.set_num_threads(threads)
    step("loading the model")(0, 0)
    windows = policy_windows(checkpoint, text)
    model = load_model(checkpoint.path, checkpoint.task, "float32", checkpoint.trust_remote_code).eval()
    split_experts(model)
    if are_tokens(windows):
        check_ids(rows_of(model), windows, "the calibration text")
    held_out = _held_out(windows)
    work = _Preparation(model, windows[:-held_out], how, step)
    work.scale_inputs()
    save_parameters(model, _made(folder / _FLOAT), step("keeping the float weights"))
    layers = work.layers(input_groups(model, checkpoint.task, windows[-held_out]))
    work.round(layers, folder / _ROUNDED)
    np.save(folder / _WINDOWS, windows.numpy())
    facts = {"done": work.done, "layers": {name: layer.dump() for name, layer in layers.items()}}
    (folder / _FACTS).write_text(json.dumps(facts), encoding="utf-8")


def _held_out(windows: Tensor) -> int:
    most = _HELD_OUT if are_tokens(windows) else len(windows)  # a picture tells as much as a token does
    return min(most, len(windows) // FEWEST)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


class _Preparation:
    """The float model on its way. Smoothing changes its weights in place and leaves its function as it was."""

    def __init__(self, model: Any, windows: Tensor, how: How, step: Step) -> None:
        self._model, self._windows, self._how, self._step = model, windows, how, step
        self.done: list[str] = []
        self._fed: Mapping[str, Statistics] = {}  # what smoothing left to know of it: enough for min-max
        self._experts = expert_layers(model)
        layers = weighted_layers(model)
        left = {} if how.experts else {"matrices of experts": {*self._experts}}
        left |= {} if how.convolutions else {"convolutions": convolutions(model).keys() & layers.keys()}
        self.done += [f"{len(names)} {what} stay in float in this format" for what, names in left.items() if names]
        self._names = [name for name in layers if not any(name in names for names in left.values())]
        resolved = how.policy.resolved(layers) if how.policy else None
        self._given = resolved and {name: resolved[name] for name in self._names}
        given = None if self._given is None else self._given.values()
        self._asked = how.schemes if given is None else [one for one in given if one is not None]

    def scale_inputs(self) -> None:
        """Moves outliers of inputs into weights, where a scheme gains by it."""
        if self._how.smooth and any(scheme.input == "static" for scheme in self._asked):
            self._smooth()
        if self._how.rounding == "awq" and any(scheme.weight == "int4" for scheme in self._asked):
            self._scale()

    def layers(self, groups: Iterable[Iterable[str]]) -> dict[str, Layer]:
        """What each layer of these groups may get, static inputs with their ranges."""
        ranges = self._find_ranges({one.signed for one in self._asked if one.input == "static"})
        modules, asked = weighted_layers(self._model), set(self._names)
        names = [name for group in groups for name in group if name in asked]
        return {name: self._layer(name, modules[name], ranges) for name in names}

    def round(self, layers: Mapping[str, Layer], folder: Path) -> None:
        """Writes 4-bit weights and palettes, rounded so that the layers' outputs suffer least, into a new folder.

        None is made where each is rounded to its nearest value. GPTQ rounds the model itself: it comes last.
        """
        lowest = {name: layer.choices[0] for name, layer in layers.items()}
        four = {name: scheme for name, scheme in lowest.items() if scheme is not None and scheme.weight == "int4"}
        palettes = {name: scheme for name, scheme in lowest.items() if scheme is not None and scheme.palette}
        if not (four or palettes) or self._how.rounding == "nearest":
            return
        found = self._palettized(palettes) if palettes else {}
        found |= self._rounded(four) if four else {}
        if unfed := (self._experts.keys() & (four | palettes)) - found.keys():
            self.done.append(f"rounded {len(unfed)} matrices of experts that no token chose to their nearest values")
        save_weights(self._model, _made(folder), found, self._step("palettes" if palettes else "rounded weights"))

    def _palettized(self, schemes: Mapping[str, Scheme]) -> dict[str, Callable[[], Tensor]]:
        """Palettes whose squared errors count as much as what the layers are fed."""
        modules, fed = weighted_layers(self._model), self._collect()
        self.done.append(f"palettes of {len(schemes)} linear layers weighted by {amount(self._windows)}")
        return {
            name: partial(palettized, weight_of(modules[name]), scheme, fed[name].mean_squares)
            for name, scheme in schemes.items()
            if name in fed
        }

    def _rounded(self, four: Mapping[str, Scheme]) -> dict[str, Callable[[], Tensor]]:
        modules = weighted_layers(self._model)
        if self._how.rounding == "awq":
            from exporter.quantization.awq import clipped

            rows = self._rows(four)
            return {
                name: partial(clipped, weight_of(modules[name]), scheme, rows[name])
                for name, scheme in four.items()
                if name in rows
            }
        from exporter.quantization.gptq import round_weights
        from exporter.quantization.hessians import hessians

        fed, rounded = halves(self._step("GPTQ"))
        matrices = hessians(self._model, self._windows, four, _HESSIANS, fed)
        done = round_weights(self._model, four, matrices, progress=rounded)
        self.done.append(f"GPTQ over {amount(self._windows)} rounded {len(done)} linear layers")
        return {name: partial(weight_of, modules[name]) for name in done}

    def _lowest(self) -> dict[str, Scheme | None]:
        """What each layer would get if nothing was chosen, before ranges are known."""
        if self._given is not None:
            return self._given
        modules = weighted_layers(self._model)
        return {name: next(iter(self._fitting(modules[name])), None) for name in self._names}

    def _smooth(self) -> None:
        import torch

        from exporter.quantization.smoothquant import inputs_after, smooth

        schemes = {name: scheme for name, scheme in self._lowest().items() if scheme and scheme.input == "static"}
        folds, fed = self._folds(), self._collect()
        absmax = {name: torch.from_numpy(its.absmax) for name, its in fed.items()}
        linear = linear_layers(self._model)  # a convolution's input is folded into nothing
        schemes = {name: scheme for name, scheme in schemes.items() if name in linear}
        made = smooth(self._model, schemes, folds, absmax, self._rows(schemes), progress=self._step("smoothing"))
        done = [one for one in made if one.alpha is not None]
        self._fed = inputs_after(fed, done)
        layers = sum(len(one.fold.layers) for one in done)
        self.done.append(f"smoothed the inputs of {layers} of {len(schemes)} linear layers (SmoothQuant)")

    def _scale(self) -> None:
        from exporter.quantization.awq import awq

        schemes = {name: scheme for name, scheme in self._lowest().items() if scheme and scheme.weight == "int4"}
        made = awq(self._model, schemes, self._folds(), self._rows(schemes), clip=False, progress=self._step("AWQ"))
        self._fed = {}
        self.done.append(f"scaled the inputs of {len(schemes) - len(made.unscaled)} linear layers (AWQ)")

    def _folds(self) -> list[Fold]:
        self._step("looking for inputs to scale")(0, 0)
        return find_folds(self._model, self._windows).folds

    def _rows(self, names: Iterable[str]) -> dict[str, Tensor]:
        some = self._windows[:: -(-len(self._windows) // _ROW_WINDOWS)]
        return input_rows(self._model, some, names, self._step("rows of inputs"))

    def _collect(self) -> dict[str, Statistics]:
        return collect(self._model, self._windows, self._step("calibrating"))

    def _find_ranges(self, kinds: set[bool]) -> Ranges:
        """Of each layer that was fed, and of all experts; {} where nothing is static."""
        if not kinds:
            return {}
        from exporter.quantization.ranges import METHODS, min_max, rounded_up

        method, per_octave = METHODS[self._how.ranges], self._how.ranges_per_octave
        shared = f", rounded up to {per_octave} an octave" if per_octave else ""
        self.done.append(f"static ranges: {self._how.ranges}, over {amount(self._windows)}{shared}")
        found = self._fed if method is min_max and self._fed else self._collect()
        fed = counting(found.items(), self._step("ranges"))
        own = {(name, signed): method(its.histogram, signed) for name, its in fed for signed in kinds}
        ranges, wide = with_stacks(self._model, own, {name: its.rows for name, its in found.items()})
        if wide:
            self.done.append(f"ranges of {wide} matrices of experts that fewer than {FEW} tokens chose: their stack's")
        return {key: rounded_up(one, per_octave) for key, one in ranges.items()} if per_octave else ranges

    def _layer(self, name: str, module: Any, ranges: Ranges) -> Layer:
        channels, inputs = weight_of(module).shape
        if self._given is not None:
            return Layer((channels, inputs), (with_range(name, self._given[name], ranges),))
        rungs = [with_range(name, one, ranges) for one in self._fitting(module)]
        return Layer((channels, inputs), (*rungs, None) if self._how.mixed or not rungs else (rungs[0],))

    def _fitting(self, module: Any) -> list[Scheme]:
        """The schemes that a layer can have. The head's errors are the model's own: it never has 4 bits."""
        inputs = weight_of(module).shape[1]
        fitting = [one for one in self._how.schemes if one.group is None or inputs % one.group == 0]
        if module.weight.dim() > 2:  # no kernel has groups of a convolution's inputs
            fitting = [one for one in fitting if one.group is None and one.weight == "int8"]
        if module is self._model.get_output_embeddings():
            fitting = [one for one in fitting if one.bits == 8]
        return fitting
