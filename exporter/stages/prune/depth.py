"""Fewer layers: those go that change the hidden state least.

A layer's block influence is 1 - cos(h_in, h_out), averaged over the tokens of a text (ShortGPT, Men et al. 2024,
arXiv:2403.03853). As there, all are measured once, in the whole model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.tokenizer import check_ids, rows_of
from exporter.errors import BuildError, JobError
from exporter.stages.prune.rebuilt import PROVEN, answer, check_same, parameters_of, rebuild

if TYPE_CHECKING:
    from torch import Tensor

# Lists of a configuration that have an entry for each layer, where they are as long as it has layers: layer_types,
# mlp_layer_types, no_rope_layers, layers_block_type, attention_layers (GPT-Neo), activation_sparsity_pattern.
_PER_LAYER = re.compile(r"layer|pattern|^intermediate_size$")
_INDICES = ("mlp_only_layers",)  # lists of the numbers of layers


def prune_depth(model: Any, count: int, windows: Tensor) -> dict[str, Any]:
    """Drops the `count` layers of least influence; changes the model and its config in place.

    `model`: float32, in eval mode, a decoder or an encoder; its modules are new ones afterwards. `windows` int64
    [windows, window]: the text that the influence is measured on.

    Returns plain data: before, after, dropped (the layers' numbers in the old model), influence (of each old layer),
    difference (from the old model with those layers skipped), parameters_before and _after, history (a line). Raises
    JobError where no layer would stay or none go, BuildError for a model that has no one stack of layers, or whose
    layers depend on their place in a way that its configuration cannot say.
    """
    stack, layers = stack_of(model)
    before = len(layers)
    if not 0 < count < before:
        raise JobError(
            f"--prune depth:{count}: of {before} layers 1 to {before - 1} can go"
            if before > 1
            else "--prune depth: the model has one layer, and one must stay"
        )
    check_ids(rows_of(model), windows, "the calibration text")
    influence = _influence(model, layers, windows)
    dropped = sorted(sorted(range(before), key=lambda number: (influence[number], number))[:count])
    kept = [number for number in range(before) if number not in dropped]
    ids = windows[:1, :PROVEN]
    with _skipped([layers[number] for number in dropped]):
        expected = answer(model, ids)
    parameters = parameters_of(model)
    weights = renumbered(model.state_dict(), stack, kept)
    shrink(model.config.get_text_config(), kept, before)
    rebuild(model, weights)
    difference = check_same(model, ids, expected, f"{len(kept)} of {before} layers")
    line = (
        f"dropped {count} of {before} layers, number {', '.join(map(str, dropped))}: those that change the hidden "
        "state least on the calibration text (block influence, arXiv:2403.03853)"
    )
    return {
        "method": "depth",
        "before": before,
        "after": len(kept),
        "dropped": dropped,
        "influence": influence,
        "difference": difference,
        "parameters_before": parameters,
        "parameters_after": parameters_of(model),
        "history": [line],
    }


def stack_of(model: Any) -> tuple[str, list[Any]]:
    """(name, layers) of the one list of as many modules as the model has layers. Raises BuildError."""
    import torch

    kind, count = type(model).__name__, model.config.get_text_config().num_hidden_layers
    if getattr(model.config, "is_encoder_decoder", False):
        raise BuildError(f"{kind} has an encoder and a decoder: which layers of the two belong together is not known")
    found = [name for name, one in model.named_modules() if isinstance(one, torch.nn.ModuleList) and len(one) == count]
    outer = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    if len(outer) != 1:
        there = f"{len(outer)} lists ({', '.join(outer)})" if outer else "no list"
        raise BuildError(
            f"{kind}: pruning the depth looks for one list of {count} layers and finds {there}; --prune width and "
            "vocabulary may serve it"
        )
    return outer[0], list(model.get_submodule(outer[0]))


def _influence(model: Any, layers: Sequence[Any], windows: Tensor) -> list[float]:
    """The block influence of each layer over all tokens of int64 [windows, window]."""
    import torch

    sums = [0.0] * len(layers)

    def see(number: int) -> Any:
        def hook(module: Any, inputs: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> None:
            before, after = _hidden(inputs, named).double(), _first(output).double()
            # The cosine of two equal vectors comes out beside 1 by rounding; influence is never negative.
            cosine = torch.nn.functional.cosine_similarity(before, after, dim=-1)
            sums[number] += float((1 - cosine).clamp(min=0).sum())

        return hook

    hooks = [one.register_forward_hook(see(number), with_kwargs=True) for number, one in enumerate(layers)]
    try:
        with torch.inference_mode():
            for window in windows:
                model(input_ids=window[None])
    finally:
        for each in hooks:
            each.remove()
    return [one / windows.numel() for one in sums]


@contextmanager
def _skipped(layers: Sequence[Any]) -> Iterator[None]:
    """Within the block these layers hand on the hidden state as they were given it."""

    def skip(module: Any, inputs: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> Any:
        hidden = _hidden(inputs, named)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    hooks = [one.register_forward_hook(skip, with_kwargs=True) for one in layers]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


def _hidden(inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    given: Tensor = inputs[0] if inputs else named["hidden_states"]
    return given


def _first(output: Any) -> Tensor:
    first: Tensor = output[0] if isinstance(output, tuple) else output
    return first


def renumbered(weights: Mapping[str, Tensor], stack: str, kept: Sequence[int]) -> dict[str, Tensor]:
    """A state dict without the dropped layers, the others counted from 0 again."""
    new = {number: place for place, number in enumerate(kept)}
    result, pattern = {}, re.compile(re.escape(stack) + r"\.(\d+)\.(.*)")
    for name, weight in weights.items():
        match = pattern.fullmatch(name)
        if match is None:
            result[name] = weight
        elif int(match[1]) in new:
            result[f"{stack}.{new[int(match[1])]}.{match[2]}"] = weight
    return result


def shrink(config: Any, kept: Sequence[int], before: int) -> None:
    """Lets a configuration speak of the kept layers alone."""
    for name, value in list(vars(config).items()):
        if name in _INDICES and value:
            setattr(config, name, [place for place, number in enumerate(kept) if number in value])
        elif isinstance(value, list | tuple) and len(value) == before and _PER_LAYER.search(name):
            setattr(config, name, [value[number] for number in kept])
    # Layers from this number on have a sliding window (Qwen2), where layer_types does not say which.
    if (first := getattr(config, "max_window_layers", None)) is not None:
        config.max_window_layers = sum(number < first for number in kept)
    config.num_hidden_layers = len(kept)
