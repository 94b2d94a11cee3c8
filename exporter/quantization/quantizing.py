"""Chooses a mix of schemes for a budget, and writes the float checkpoint that is exported with it.

What it chooses from was found once (exporter.quantization.preparing) and lies in files: a mix is chosen again, with a
smaller budget, where the real artifact lost more than its simulation. What the layers lose is found once too, whatever
the budget.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from exporter import store
from exporter.cache import Keep
from exporter.checkpoint.experts import in_stacks, split_experts
from exporter.checkpoint.linear import weight_of, weighted_layers
from exporter.progress import Counted, Step, counting
from exporter.quantization.cost import SIZE, Costs
from exporter.quantization.layer_weights import LayerWeights, names_of_weights, save_parameters
from exporter.quantization.policy import FLOAT, Policy
from exporter.quantization.prepared import Prepared
from exporter.quantization.preparing import How
from exporter.quantization.ranking import Group, rank, rank_by_estimates
from exporter.quantization.selection import Choice, choose
from exporter.types import Checkpoint

POLICY = "policy.yaml"
_RANKED = "ranked.json"
_BIAS_WINDOWS = 8  # what bias correction runs as one batch
_WORST = 12  # groups that the record names


class Quantizer:
    """The prepared float model of a folder. It changes while it is measured or written, and is put back each time.

    `originals`: the folder of the checkpoint's weights in float32, which are put back from there; it is made where it
    is not there yet, and serves all that is chosen of this checkpoint. `keep`: of what the layers lose; `was_ranked`
    says whether that was there when it was needed, None: it was not.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        how: How,
        threads: int,
        step: Step,
        folder: Path,
        originals: Path,
        keep: Keep,
        costs: Costs = SIZE,
    ) -> None:
        import torch

        from exporter.checkpoint.model import load_model
        from exporter.quantization.sensitivity import LossMeter

        torch.set_num_threads(threads)
        self._checkpoint, self._how, self._step = checkpoint, how, step
        self._keep, self._costs = keep, costs
        step("loading the model")(0, 0)
        self._prepared = Prepared.load(folder, how)
        model = load_model(checkpoint.path, checkpoint.task, "float32", checkpoint.trust_remote_code).eval()
        split_experts(model)
        _write_originals(model, originals, step("keeping the float weights"))
        self._prepared.change(model)
        self._model = model
        self._originals = LayerWeights(model, *self._prepared.changed, originals)
        self._weights = self._prepared.rounded(model)
        self._ranked: dict[str, Any] = {"how": "measured"}
        self.was_ranked: bool | None = None
        held_out, rounds = self._prepared.held_out, how.rounds_outputs
        self._meter = LossMeter(model, checkpoint.task, held_out, self._originals, rounds, step)

    def choose(self, budget: float) -> Choice:
        """The cheapest mix whose simulated loss is at most the budget; a policy that was given as it is."""
        if self._how.policy is not None or not self._how.mixed:
            schemes = self._prepared.lowest()
            loss = self._meter.loss(schemes, self._weights)
            return Choice(schemes, loss, loss <= budget, ())
        return choose(self._meter, self._prepared.layers, self._groups, budget, self._weights, self._costs)

    def _groups(self) -> list[Group]:
        """Ranked once: the order does not depend on the budget."""
        folder, self.was_ranked = self._keep(self._rank)
        found = json.loads((folder / _RANKED).read_text(encoding="utf-8"))
        self._ranked = found["about"]
        return [Group.load(one) for one in found["groups"]]

    def _rank(self, folder: Path) -> None:
        given = (self._meter, self._prepared.layers, self._weights, self._step("sensitivity"))
        about = self._ranked
        if self._how.sensitivity == "estimated":
            groups, about = rank_by_estimates(*given)
        else:
            groups = rank(*given)
        told = {"about": about, "groups": [group.dump() for group in groups]}
        (folder / _RANKED).write_text(json.dumps(told), encoding="utf-8")

    def write(self, choice: Choice, budget: float, folder: Path) -> dict[str, Any]:
        """The float checkpoint with the layers' weights on their grids, its policy.yaml; returns the record of both."""
        import torch

        from exporter.checkpoint.folder import carry
        from exporter.quantization.bias_correction import biased, correct_biases, mean_outputs, round_biases
        from exporter.quantization.grid import rounded

        modules, windows = weighted_layers(self._model), self._prepared.windows[:_BIAS_WINDOWS]
        mended = biased(self._model, choice.schemes)
        with_bias = [name for name in choice.schemes if modules[name].bias is not None]
        biases = {name: modules[name].bias.data.clone() for name in with_bias}
        expected = mean_outputs(self._model, windows, mended, self._step("mean outputs"))
        with torch.no_grad():
            for name, scheme in counting(choice.schemes.items(), self._step("rounding")):
                if scheme is not None:
                    weight = weight_of(modules[name])
                    best = scheme == self._prepared.layers[name].choices[0] and name in self._weights
                    weight.copy_(self._weights[name] if best else rounded(weight, scheme))
            step = self._step("bias correction")
            corrected = correct_biases(self._model, windows, choice.schemes, expected, step)
            round_biases(self._model, choice.schemes)
            self._step("writing the checkpoint")(0, 0)
            with in_stacks(self._model):
                self._model.save_pretrained(folder)
            loss = self._meter.loss(choice.schemes)  # and the weights are the original ones again
            for name, bias in biases.items():
                modules[name].bias.copy_(bias)
        carry(self._checkpoint.path, [], folder)
        schemes: dict[str, Any] = {name: scheme or FLOAT for name, scheme in choice.schemes.items()}
        policy = Policy(source=self._checkpoint.source, sha256=self._checkpoint.sha256, modules=schemes)
        (folder / POLICY).write_text(policy.to_yaml(), encoding="utf-8")
        return self._record(choice, loss, budget, len(corrected.layers))

    def _record(self, choice: Choice, loss: float, budget: float, corrected: int) -> dict[str, Any]:
        kinds = Counter(str(scheme or FLOAT) for scheme in choice.schemes.values())
        in_words = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        shown = {name: str(scheme or FLOAT) for name, scheme in choice.schemes.items()}
        usual = kinds.most_common(1)[0][0]
        biases = [f"corrected the biases of {corrected} linear layers"] if corrected else []
        return {
            "policy": {name: scheme and scheme.model_dump(mode="json") for name, scheme in choice.schemes.items()},
            "given": self._how.policy is not None,
            "schemes": dict(kinds),
            "others": {name: scheme for name, scheme in shown.items() if scheme != usual},
            "loss": loss,
            "budget": budget,
            "unit": self._meter.unit,
            "cost": self._costs.total(self._prepared.layers, choice.schemes),
            "cost_unit": self._costs.unit,
            "tokens": self._meter.tokens,
            "ranked": self._ranked if choice.groups else None,
            "sensitivity": [[list(group.names), group.loss] for group in choice.groups[:_WORST]],
            "history": [*self._prepared.done, *biases, f"quantized in float: {in_words} linear layers"],
        }


def _write_originals(model: Any, folder: Path, progress: Counted) -> None:
    if not folder.is_dir():
        with store.temporary_folder(folder.parent, folder.name) as building:  # half of it is never found
            save_parameters(model, building, names_of_weights(model), progress)
            building.rename(folder)
