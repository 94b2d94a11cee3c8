"""Fewer neurons in each MLP: those go whose outputs the next layer makes least of.

A neuron j of a layer is worth E[x_j^2] |W_:j|^2, x_j what the down projection is fed in its channel and W_:j the column
that reads it: the mean square of what the neuron adds to the hidden state. It is Wanda's metric (Sun et al. 2023,
arXiv:2306.11695) summed over a column, as structured pruning takes it (Wanda-sp of FLAP, An et al. 2023,
arXiv:2312.11983; Minitron, Muralidharan et al. 2024, arXiv:2407.14679, ranks by the activation alone). The same number
goes in every layer, for a configuration has one width for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.linear import linear_layers, weight_of
from exporter.checkpoint.tokenizer import check_ids, rows_of
from exporter.errors import BuildError, JobError
from exporter.quantization.statistics import watched
from exporter.stages.prune.rebuilt import (
    PROVEN,
    answer,
    check_same,
    check_share,
    cut,
    parameters_of,
    ranked,
    rebuild,
    silenced,
)

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 32  # what blocks of quantized weights and the engines' kernels want a width to be a multiple of
# The layers that make a module's neurons, the one that reads them, and how many times the first hold each neuron: where
# gate and up are one layer it is two, the one half after the other.
_KINDS: tuple[tuple[tuple[str, ...], str, int], ...] = (
    (("gate_proj", "up_proj"), "down_proj", 1),  # Llama, Qwen, Gemma, Mistral, SmolLM
    (("gate_up_proj",), "down_proj", 2),  # Phi-3
    (("up_proj",), "down_proj", 1),  # Nemotron
    (("c_fc",), "c_proj", 1),  # GPT-2, StarCoder2
    (("fc_in",), "fc_out", 1),  # GPT-J
    (("dense_h_to_4h",), "dense_4h_to_h", 1),  # GPT-NeoX, Falcon
    (("intermediate.dense",), "output.dense", 1),  # BERT, RoBERTa
    (("fc1",), "fc2", 1),  # OPT, Phi
    (("lin1",), "lin2", 1),  # DistilBERT
    (("Wi",), "Wo", 2),  # ModernBERT
)
# A configuration's fields for the width.
_FIELDS = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "hidden_dim")
_SUPPORTED = "Llama, Qwen, Gemma, Mistral, Phi-3, GPT-2, GPT-NeoX, OPT, BERT, DistilBERT, ModernBERT and their like"
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class _Mlp:
    """An MLP by the names of its layers; the `makers` hold each neuron `halves` times."""

    makers: tuple[str, ...]
    reader: str
    halves: int


def prune_width(model: Any, share: float, windows: Tensor) -> dict[str, Any]:
    """Drops a share of the neurons of each MLP, least important first; changes the model and its config in place.

    `model`: float32, in eval mode; its modules are new ones afterwards. `windows` int64 [windows, window]: the text
    that shows what matters. What is kept is rounded to a multiple of 32 neurons where there are more than that.

    Returns plain data: before, after (neurons a layer), layers, importance_dropped (of each layer, the share of all
    importance that went), difference (from the old model with those neurons silenced), parameters_before and _after,
    history (a line). Raises JobError for a share that drops none or all, BuildError for a family that is not known
    and for experts.
    """
    check_share(share, "width")
    mlps = _mlps(model)
    layers = linear_layers(model)
    before = int(weight_of(layers[mlps[0].reader]).shape[1])
    field = _field(model, before)
    after = _kept(before, share)
    check_ids(rows_of(model), windows, "the calibration text")
    scores = _importance(model, {one.reader: layers[one.reader] for one in mlps}, windows)
    kept, dropped, lost = {}, {}, []
    for one in mlps:
        kept[one.reader], dropped[one.reader], share_lost = ranked(scores[one.reader], after)
        lost.append(share_lost)
    ids = windows[:1, :PROVEN]
    with silenced(layers, dropped):
        expected = answer(model, ids)
    parameters = parameters_of(model)
    weights = _cut(model, layers, mlps, kept)
    setattr(model.config.get_text_config(), field, after)
    rebuild(model, weights)
    difference = check_same(model, ids, expected, f"{after} of {before} neurons")
    line = (
        f"dropped {before - after} of {before} neurons in each of {len(mlps)} MLPs, those that add least on the "
        f"calibration text (arXiv:2306.11695 by column); {field} is {after} now"
    )
    return {
        "method": "width",
        "before": before,
        "after": after,
        "layers": len(mlps),
        "importance_dropped": lost,
        "difference": difference,
        "parameters_before": parameters,
        "parameters_after": parameters_of(model),
        "history": [line],
    }


def _kept(before: int, share: float) -> int:
    """How many neurons stay: the nearest multiple of 32 where there are more than 32."""
    wanted = before * (1 - share)
    after = max(BLOCK, round(wanted / BLOCK) * BLOCK) if before > BLOCK else max(1, round(wanted))
    if after >= before:
        step = BLOCK if before > BLOCK else 1
        raise JobError(
            f"--prune width:{share:g} of {before} neurons drops none: they go by {step}; give "
            f"width:{step / before:.2g} or more"
            if before > step
            else f"--prune width: an MLP of {before} neurons has none to drop"
        )
    return after


def _mlps(model: Any) -> list[_Mlp]:
    """The model's MLPs in order, one a layer, all of one width. Raises BuildError."""
    kind, config = type(model).__name__, model.config.get_text_config()
    experts = any((getattr(config, name, None) or 0) > 1 for name in _EXPERTS)
    if experts or any(name.rpartition(".")[2] == "experts" for name, _ in model.named_modules()):
        raise BuildError(
            f"{kind} is a mixture of experts, whose neurons no token sees all of: its width is not pruned; depth and "
            "vocabulary are, and single weights (magnitude, wanda, sparsegpt)"
        )
    layers = linear_layers(model)
    found = []
    for name, _ in model.named_modules():
        prefix = f"{name}." if name else ""
        for makers, reader, halves in _KINDS:
            names = [prefix + maker for maker in makers]
            if all(one in layers for one in names) and prefix + reader in layers:
                found.append(_Mlp(tuple(names), prefix + reader, halves))
                break
    if not found or len(found) != config.num_hidden_layers:
        there = f"{len(found)} of {config.num_hidden_layers} layers" if found else "no layer"
        raise BuildError(
            f"{kind}: pruning the width knows the MLP of {there}; it knows those of {_SUPPORTED}; --prune depth drops "
            "whole layers of any family"
        )
    shapes = {(len(weight_of(layers[m])) // one.halves, weight_of(layers[one.reader]).shape[1])
              for one in found for m in one.makers}  # fmt: skip
    if len(shapes) != 1 or len({*next(iter(shapes))}) != 1:
        raise BuildError(f"{kind}: its MLPs are not all of one width, which is all that pruning the width can shrink")
    return found


def _field(model: Any, width: int) -> str:
    """The name of the width in the model's configuration. Raises BuildError."""
    config = model.config.get_text_config()
    for name in _FIELDS:
        # None: GPT-2's way of saying four times the hidden size.
        if hasattr(config, name) and getattr(config, name) in (width, None):
            return name
    raise BuildError(
        f"{type(model).__name__}: its configuration has no field that says {width}, the width of its MLPs, so that no "
        "other could be loaded; --prune depth drops whole layers instead"
    )


def _importance(model: Any, readers: Mapping[str, Any], windows: Tensor) -> dict[str, Tensor]:
    """Of each down projection's inputs the mean square of what they add to its output, float64 [neurons]."""
    import torch

    squares: dict[str, Tensor] = {}

    def see(name: str, inputs: Tensor) -> None:
        here = inputs.reshape(-1, inputs.shape[-1]).square().sum(0, dtype=torch.float64)
        squares[name] = squares[name] + here if name in squares else here

    with torch.inference_mode(), watched(readers, see):
        for window in windows:
            model(input_ids=window[None])
    if missing := readers.keys() - squares.keys():
        raise BuildError(f"{type(model).__name__} never ran {min(missing)}: it is no MLP as pruning the width knows it")
    columns = {name: weight_of(layer).double().square().sum(0) for name, layer in readers.items()}
    return {name: squares[name] / windows.numel() * columns[name] for name in readers}


def _cut(model: Any, layers: Mapping[str, Any], mlps: list[_Mlp], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with the kept neurons alone."""
    import torch

    weights = dict(model.state_dict())
    for one in mlps:
        stays = kept[one.reader]
        width = weight_of(layers[one.reader]).shape[1]
        rows = torch.cat([stays + half * width for half in range(one.halves)])
        for name in one.makers:
            cut(weights, f"{name}.weight", rows, _axis(layers[name], 0))
            cut(weights, f"{name}.bias", rows, 0)
        cut(weights, f"{one.reader}.weight", stays, _axis(layers[one.reader], 1))
    return weights


def _axis(layer: Any, axis: int) -> int:
    """Where outputs (0) or inputs (1) lie in a layer's weight as it is stored: Conv1D has them the other way round."""
    import torch

    return axis if isinstance(layer, torch.nn.Linear) else 1 - axis
