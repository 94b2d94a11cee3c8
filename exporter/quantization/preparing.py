"""What a policy is chosen from: smoothed weights, ranges and rounded weights, found once, kept in files.

A mix of schemes is chosen of it (exporter.quantization.quantizing), perhaps several times, in other processes: while an
artifact is exported and measured, no memory is held for the case that another mix must be chosen. Later runs begin with
it too, and other targets whose layers begin with the same schemes (How.preparation).

GPTQ's Hessians are not kept: each is K x K, all together are larger than the model, and those of later layers are of
inputs that the rounding of earlier ones made. What they are for is kept, the rounded weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.cache import Keep
from exporter.checkpoint.experts import expert_layers, split_experts
from exporter.checkpoint.linear import amount, are_tokens, convolutions, linear_layers, weight_of, weighted_layers
from exporter.checkpoint.tokenizer import check_ids, rows_of
from exporter.progress import Step, counting, halves
from exporter.quantization.calibrate import policy_windows
from exporter.quantization.folds import Fold, find_folds
from exporter.quantization.input_rows import input_rows
from exporter.quantization.layer_weights import save_parameters, save_weights
from exporter.quantization.palette import palettized
from exporter.quantization.policy import Policy
from exporter.quantization.prepared import CHANGED, FACTS, ROUNDED, WINDOWS, Shape, dump, fits_all, held_out
from exporter.quantization.sensitivity import input_groups
from exporter.quantization.stacked import FEW, Ranges, with_stacks
from exporter.quantization.statistics import Statistics, collect, load_statistics, save_statistics
from exporter.scheme import Scheme
from exporter.types import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

_HESSIANS = 1 << 29  # bytes of GPTQ's matrices at a time
_ROW_WINDOWS = 16  # spread over the text: a few hundred rows of a layer's inputs are taken from them


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

    def dump(self) -> dict[str, Any]:
        """For JSON."""
        schemes = [one.model_dump(mode="json") for one in self.schemes]
        return {**vars(self), "schemes": schemes, "policy": self.policy and self.policy.model_dump(mode="json")}

    def preparation(self) -> How:
        """What `prepare` depends on, all else at its default: where this is equal, what it finds is the same.

        Of the schemes those that can be a layer's lowest, and static ones, whose ranges are found. A policy that is
        given has its own.
        """
        schemes: tuple[Scheme, ...] = ()
        if self.policy is None:
            first = next((at for at, one in enumerate(self.schemes) if fits_all(one)), len(self.schemes))
            later = (one for one in self.schemes[first + 1 :] if one.input == "static")
            schemes = (*self.schemes[: first + 1], *later)
        return How(
            schemes,
            mixed=False,
            ranges=self.ranges,
            smooth=self.smooth,
            rounding=self.rounding,
            policy=self.policy,
            ranges_per_octave=self.ranges_per_octave,
            experts=self.experts,
            convolutions=self.convolutions,
        )


def prepare(
    checkpoint: Checkpoint, how: How, threads: int, step: Step, folder: Path, keep: Keep | None = None, **text: Any
) -> bool:
    """Calibrates the float model, and writes what is found into an empty folder, for Prepared.load.

    `text` is what exporter.quantization.calibrate's windows are made of. `keep`: of the float model's statistics on
    them, which have nothing to do with `how`; returns whether they were there.
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
    last = held_out(windows)
    work = _Preparation(model, windows[:-last], how.preparation(), step, keep)
    work.scale_inputs()
    if work.changed:
        save_parameters(model, folder / CHANGED, work.changed, step("keeping the float weights"))
    layers = work.layers(input_groups(model, checkpoint.task, windows[-last]))
    work.round(layers.keys(), folder / ROUNDED)
    np.save(folder / WINDOWS, windows.numpy())
    (folder / FACTS).write_text(json.dumps({"done": work.done, "layers": layers}), encoding="utf-8")
    return work.were_collected


class _Preparation:
    """The float model on its way. Smoothing changes its weights in place and leaves its function as it was.

    `changed`: the names of the parameters that are no longer the checkpoint's, until it is rounded. `were_collected`:
    its own statistics were kept before.
    """

    def __init__(self, model: Any, windows: Tensor, how: How, step: Step, keep: Keep | None) -> None:
        self._model, self._windows, self._how, self._step, self._keep = model, windows, how, step, keep
        self.done: list[str] = []
        self.changed: set[str] = set()
        self.were_collected = False
        self._own: Mapping[str, Statistics] = {}  # the checkpoint's
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

    def layers(self, groups: Iterable[Iterable[str]]) -> dict[str, dict[str, Any]]:
        """What decides what each layer of these groups may get: its shape, and the ranges of static inputs."""
        kinds = {one.signed for one in self._asked if one.input == "static"}
        ranges = self._find_ranges(kinds)
        modules, asked = weighted_layers(self._model), set(self._names)
        names = [name for group in groups for name in group if name in asked]
        found = {name: {kind: ranges[name, kind] for kind in kinds if (name, kind) in ranges} for name in names}
        return {name: dump(Shape.of(self._model, modules[name]), its) for name, its in found.items()}

    def round(self, names: Collection[str], folder: Path) -> None:
        """Writes 4-bit weights and palettes of these layers, rounded so that the layers' outputs suffer least.

        None is made where each is rounded to its nearest value. GPTQ rounds the model itself: it comes last.
        """
        lowest = {name: scheme for name, scheme in self._lowest().items() if name in names}
        four = {name: scheme for name, scheme in lowest.items() if scheme is not None and scheme.weight == "int4"}
        palettes = {name: scheme for name, scheme in lowest.items() if scheme is not None and scheme.palette}
        if not (four or palettes) or self._how.rounding == "nearest":
            return
        found = self._palettized(palettes) if palettes else {}
        found |= self._rounded(four) if four else {}
        if unfed := (self._experts.keys() & (four | palettes)) - found.keys():
            self.done.append(f"rounded {len(unfed)} matrices of experts that no token chose to their nearest values")
        save_weights(self._model, folder, found, self._step("palettes" if palettes else "rounded weights"))

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
        shapes = {name: Shape.of(self._model, modules[name]) for name in self._names}
        return {name: next(iter(shape.fitting(self._how.schemes)), None) for name, shape in shapes.items()}

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
        self._note_changes([one.fold for one in done])
        layers = sum(len(one.fold.layers) for one in done)
        self.done.append(f"smoothed the inputs of {layers} of {len(schemes)} linear layers (SmoothQuant)")

    def _scale(self) -> None:
        from exporter.quantization.awq import awq

        schemes = {name: scheme for name, scheme in self._lowest().items() if scheme and scheme.weight == "int4"}
        made = awq(self._model, schemes, self._folds(), self._rows(schemes), clip=False, progress=self._step("AWQ"))
        self._fed = {}
        self._note_changes([one.fold for one in made.folds if one.alpha])
        self.done.append(f"scaled the inputs of {len(schemes) - len(made.unscaled)} linear layers (AWQ)")

    def _folds(self) -> list[Fold]:
        self._step("looking for inputs to scale")(0, 0)
        return find_folds(self._model, self._windows).folds

    def _rows(self, names: Iterable[str]) -> dict[str, Tensor]:
        some = self._windows[:: -(-len(self._windows) // _ROW_WINDOWS)]
        return input_rows(self._model, some, names, self._step("rows of inputs"))

    def _note_changes(self, folds: Iterable[Fold]) -> None:
        modules = {self._model.get_submodule(name) for one in folds for name in (one.source, *one.layers)}
        touched = {id(parameter) for module in modules for parameter in module.parameters()}
        self.changed |= {name for name, one in self._model.named_parameters() if id(one) in touched}

    def _collect(self) -> Mapping[str, Statistics]:
        """Of the model as it is; the checkpoint's own are collected once, for all that is calibrated on this text."""
        told = self._step("calibrating")
        if self.changed or self._keep is None:
            return collect(self._model, self._windows, told)
        if not self._own:
            folder, self.were_collected = self._keep(
                lambda into: save_statistics(collect(self._model, self._windows, told), into)
            )
            self._own = load_statistics(folder)
        return self._own

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
