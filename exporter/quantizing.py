"""One variant's policy, and the float checkpoint that is exported with it, from one calibration of the float model.

Smoothing, ranges and rounded weights are found once. Then a mix of schemes is chosen for a budget, and chosen again
with a smaller one where the real artifact lost more than its simulation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import JobError
from exporter.linear import linear_layers, weight_of
from exporter.policy import FLOAT, Policy, Scheme
from exporter.selection import Choice, Group, Layer, choose, rank
from exporter.types import FEATURES, Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from exporter.statistics import Statistics

POLICY = "policy.yaml"
_HELD_OUT = 4  # windows at most that nothing is calibrated on: the losses are measured there
_FEWEST = 4  # windows of which one is held out
_HESSIANS = 1 << 29  # bytes of GPTQ's matrices at a time
_BIAS_WINDOWS = 8  # what bias correction runs as one batch
_ROW_WINDOWS = 16  # spread over the text: a few hundred rows of a layer's inputs are taken from them
_WORST = 12  # groups that the record names
Step = Callable[[str], Callable[[int, int], None]]  # a step's name to what is told of its progress


@dataclass(frozen=True)
class How:
    """How a policy is made. `schemes`: what a layer may get, cheapest first; float is the last resort where `mixed`.

    `policy`: given, so that nothing is chosen; ranges that it leaves out are found.
    """

    schemes: tuple[Scheme, ...]
    mixed: bool
    ranges: str
    smooth: bool
    rounding: str
    policy: Policy | None = None

    @classmethod
    def load(cls, values: Mapping[str, Any]) -> How:
        schemes = tuple(Scheme.model_validate(one) for one in values["schemes"])
        policy = None if values["policy"] is None else Policy.model_validate(values["policy"])
        return cls(**{**values, "schemes": schemes, "policy": policy})


def windows_of(path: Path, trust: bool, text: Mapping[str, Any]) -> Tensor:
    """The calibration windows of a checkpoint's tokenizer, some of which will be held out. Raises JobError for few."""
    from transformers import AutoTokenizer

    from exporter.calibrate import calibration_windows

    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust)
    windows = calibration_windows(tokenizer, **{key: value for key, value in text.items() if key != "name"})
    if len(windows) < _FEWEST:
        raise JobError(
            f"{text['name']} gives {len(windows)} calibration windows of {windows.shape[1]} tokens, and a policy needs "
            f"{_FEWEST}, for one in four is measured on: raise --calib-tokens, or give a longer --calib-text"
        )
    return windows


def open_quantizer(checkpoint: Checkpoint, how: How, threads: int, step: Step, **text: Any) -> Quantizer:
    """Loads the float model, and calibrates it. `text` is what exporter.calibrate's windows are made of."""
    import torch

    from exporter.targets.torch import load_model

    torch.set_num_threads(threads)
    windows = windows_of(checkpoint.path, checkpoint.trust_remote_code, text)
    model = load_model(checkpoint.path, checkpoint.task, "float32", checkpoint.trust_remote_code).eval()
    return Quantizer(checkpoint, model, windows, how, step)


class Quantizer:
    """A float model between its calibration and the last choice of a mix.

    Smoothing changes its weights in place and leaves its function as it was; all else is undone.
    """

    def __init__(self, checkpoint: Checkpoint, model: Any, windows: Tensor, how: How, step: Step) -> None:
        from exporter.sensitivity import LossMeter

        self._checkpoint, self._model, self._how, self._step = checkpoint, model, how, step
        held_out = min(_HELD_OUT, len(windows) // _FEWEST)
        self._windows = windows[:-held_out]
        self._done: list[str] = []
        self._given = how.policy.resolved(linear_layers(model)) if how.policy else None
        asked = how.schemes if self._given is None else [one for one in self._given.values() if one is not None]
        static = any(scheme.input == "static" for scheme in asked)
        if how.smooth and static:
            self._smooth()
        if how.rounding == "awq" and any(scheme.bits == 4 for scheme in asked):
            self._scale()
        self._meter = LossMeter(model, checkpoint.task, windows[-held_out:])
        self._ranges = self._find_ranges({one.signed for one in asked if one.input == "static"})
        self._layers = {name: self._layer(name) for group in self._meter.groups for name in group}
        self._weights = self._round()
        self._groups: list[Group] = []

    def choose(self, budget: float) -> Choice:
        """The cheapest mix whose simulated loss is at most the budget; a policy that was given as it is."""
        if self._given is not None or not self._how.mixed:
            schemes = {name: layer.choices[0] for name, layer in self._layers.items()}
            loss = self._meter.loss(schemes, self._weights)
            return Choice(schemes, loss, loss <= budget, ())
        if not self._groups:
            self._groups = rank(self._meter, self._layers, self._weights, self._step("sensitivity"))
        return choose(self._meter, self._layers, self._groups, budget, self._weights)

    def write(self, choice: Choice, budget: float, folder: Path) -> dict[str, Any]:
        """The float checkpoint with the layers' weights on their grids, its policy.yaml; returns the record of both."""
        import torch

        from exporter.grid import rounded
        from exporter.stages.bias_correction import correct_biases, mean_outputs, round_biases
        from exporter.stages.folder import carry

        modules = linear_layers(self._model)
        kept = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
        expected = mean_outputs(self._model, self._windows[:_BIAS_WINDOWS], choice.schemes)
        with torch.no_grad():
            for name, scheme in choice.schemes.items():
                if scheme is not None:
                    weight = weight_of(modules[name])
                    best = self._weights.get(name) if scheme == self._layers[name].choices[0] else None
                    weight.copy_(rounded(weight, scheme) if best is None else best)
            corrected = correct_biases(self._model, self._windows[:_BIAS_WINDOWS], choice.schemes, expected)
            round_biases(self._model, choice.schemes)
            loss = self._meter.loss(choice.schemes)
            self._model.save_pretrained(folder)
            self._model.load_state_dict(kept)
        carry(self._checkpoint.path, [], folder)
        schemes: dict[str, Any] = {name: scheme or FLOAT for name, scheme in choice.schemes.items()}
        policy = Policy(source=self._checkpoint.source, sha256=self._checkpoint.sha256, modules=schemes)
        (folder / POLICY).write_text(policy.to_yaml(), encoding="utf-8")
        return self._record(choice, loss, budget, len(corrected.layers))

    def _lowest(self) -> dict[str, Scheme | None]:
        """What each layer would get if nothing was chosen, before ranges are known."""
        if self._given is not None:
            return self._given
        modules = linear_layers(self._model)
        return {name: next(iter(self._fitting(module)), None) for name, module in modules.items()}

    def _smooth(self) -> None:
        import torch

        from exporter.stages.folds import find_folds
        from exporter.stages.input_rows import input_rows
        from exporter.stages.smoothquant import smooth

        schemes = {name: scheme for name, scheme in self._lowest().items() if scheme and scheme.input == "static"}
        found = find_folds(self._model, self._windows)
        absmax = {name: torch.from_numpy(its.absmax) for name, its in self._collect().items()}
        rows = input_rows(self._model, self._some_windows(), schemes)
        done = [one for one in smooth(self._model, schemes, found.folds, absmax, rows) if one.alpha is not None]
        layers = sum(len(one.fold.layers) for one in done)
        self._done.append(f"smoothed the inputs of {layers} of {len(schemes)} linear layers (SmoothQuant)")

    def _scale(self) -> None:
        from exporter.stages.awq import awq
        from exporter.stages.folds import find_folds
        from exporter.stages.input_rows import input_rows

        schemes = {name: scheme for name, scheme in self._lowest().items() if scheme and scheme.bits == 4}
        rows = input_rows(self._model, self._some_windows(), schemes)
        made = awq(self._model, schemes, find_folds(self._model, self._windows).folds, rows, clip=False)
        self._done.append(f"scaled the inputs of {len(schemes) - len(made.unscaled)} linear layers (AWQ)")

    def _some_windows(self) -> Tensor:
        return self._windows[:: -(-len(self._windows) // _ROW_WINDOWS)]

    def _collect(self) -> dict[str, Statistics]:
        from exporter.statistics import collect

        return collect(self._model, self._windows, self._step("calibrating"))

    def _find_ranges(self, kinds: set[bool]) -> dict[tuple[str, bool], tuple[float, float]]:
        """By a layer's name and whether the range is signed; {} where nothing is static."""
        if not kinds:
            return {}
        from exporter.ranges import METHODS

        self._done.append(f"static ranges: {self._how.ranges}, over {self._windows.numel()} tokens")
        method = METHODS[self._how.ranges]
        found = self._collect().items()
        return {(name, signed): method(its.histogram, signed) for name, its in found for signed in kinds}

    def _layer(self, name: str) -> Layer:
        module = linear_layers(self._model)[name]
        channels, inputs = weight_of(module).shape
        if self._given is not None:
            return Layer(channels * inputs, (self._with_range(name, self._given[name]),))
        rungs = [self._with_range(name, one) for one in self._fitting(module)]
        return Layer(channels * inputs, (*rungs, None) if self._how.mixed or not rungs else (rungs[0],))

    def _fitting(self, module: Any) -> list[Scheme]:
        """The schemes that a layer can have. The head's errors are the model's own: it never has 4 bits."""
        inputs = weight_of(module).shape[1]
        fitting = [one for one in self._how.schemes if one.group is None or inputs % one.group == 0]
        if module is self._model.get_output_embeddings():
            fitting = [one for one in fitting if one.bits == 8]
        return fitting

    def _with_range(self, name: str, scheme: Scheme | None) -> Scheme | None:
        if scheme is None or scheme.input != "static" or scheme.range is not None:
            return scheme
        return scheme.model_copy(update={"range": self._ranges[name, scheme.signed]})

    def _round(self) -> dict[str, Tensor]:
        """4-bit weights [N, K] by name, rounded so that the layers' outputs suffer least; {}: each to its nearest."""
        lowest = {name: layer.choices[0] for name, layer in self._layers.items()}
        four = {name: scheme for name, scheme in lowest.items() if scheme is not None and scheme.bits == 4}
        if not four or self._how.rounding == "nearest":
            return {}
        modules = linear_layers(self._model)
        kept = {name: weight_of(modules[name]).clone() for name in four}
        if self._how.rounding == "awq":
            from exporter.stages.awq import clipped
            from exporter.stages.input_rows import input_rows

            rows = input_rows(self._model, self._some_windows(), four)
            return {name: clipped(kept[name], scheme, rows[name]) for name, scheme in four.items() if name in rows}
        from exporter.hessians import hessians
        from exporter.stages.gptq import round_weights

        matrices = hessians(self._model, self._windows, four, _HESSIANS, self._step("GPTQ"))
        done = round_weights(self._model, four, matrices)
        self._done.append(f"GPTQ over {self._windows.numel()} tokens rounded {len(done)} linear layers")
        found = {name: weight_of(modules[name]).clone() for name in done}
        for name, weight in kept.items():
            weight_of(modules[name]).copy_(weight)
        return found

    def _record(self, choice: Choice, loss: float, budget: float, corrected: int) -> dict[str, Any]:
        kinds = Counter(str(scheme or FLOAT) for scheme in choice.schemes.values())
        in_words = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        shown = {name: str(scheme or FLOAT) for name, scheme in choice.schemes.items()}
        usual = kinds.most_common(1)[0][0]
        biases = [f"corrected the biases of {corrected} linear layers"] if corrected else []
        return {
            "policy": {name: scheme and scheme.model_dump(mode="json") for name, scheme in choice.schemes.items()},
            "given": self._given is not None,
            "schemes": dict(kinds),
            "others": {name: scheme for name, scheme in shown.items() if scheme != usual},
            "loss": loss,
            "budget": budget,
            "unit": "1 - cosine" if self._checkpoint.task == FEATURES else "KL, nats",
            "tokens": self._meter.tokens,
            "sensitivity": [[list(group.names), group.loss] for group in choice.groups[:_WORST]],
            "history": [*self._done, *biases, f"quantized in float: {in_words} linear layers"],
        }
