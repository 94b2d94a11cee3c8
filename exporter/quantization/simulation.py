"""A policy, simulated: a float model whose linear layers compute with rounded weights and rounded inputs.

Rounding is exporter.quantization.grid's, the one that the targets ship, so that what is measured here is what an
artifact will do up to float32's own rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.linear import weight_of, weighted_layers
from exporter.progress import Counted, counting, nobody
from exporter.quantization.grid import rounded, rounded_input
from exporter.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def simulated(
    model: Any,
    schemes: Mapping[str, Scheme | None],
    weights: Mapping[str, Tensor] = MappingProxyType({}),
    originals: Mapping[str, Tensor] | None = None,
    rounds_outputs: bool = False,
    progress: Counted = nobody,
) -> Iterator[None]:
    """Within the block the model's linear layers compute as their schemes say; afterwards it is as it was.

    `weights` [N, K] by name are on their scheme's grid already, chosen by a better method than the nearest value.
    `originals` [N, K] are what the layers get afterwards; None: what they have, kept in memory in the meantime.
    `rounds_outputs`: an engine's int8 products round what they answer too, here in the range of each answer's own.
    `progress` is told the layers whose weights are rounded.
    """
    modules = weighted_layers(model)
    kept: dict[str, Any] = {}
    hooks = []
    try:
        for name, scheme in counting(schemes.items(), progress):
            if scheme is None:
                continue
            weight = weight_of(modules[name])
            kept[name] = weight.clone() if originals is None else None
            weight.copy_(weights[name] if name in weights else rounded(weight, scheme))
            if scheme.input != "float":
                hooks.append(modules[name].register_forward_pre_hook(_rounding(scheme)))
            if scheme.input == "static" and rounds_outputs:
                hooks.append(modules[name].register_forward_hook(_rounding_outputs(scheme)))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for name, own in kept.items():
            weight_of(modules[name]).copy_(own if originals is None else originals[name])


def _rounding(scheme: Scheme) -> Callable[[Any, tuple[Any, ...]], tuple[Any, ...]]:
    return lambda module, inputs: (rounded_input(inputs[0], scheme), *inputs[1:])


def _rounding_outputs(scheme: Scheme) -> Callable[[Any, tuple[Any, ...], Tensor], Tensor]:
    def rounded_output(module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        low, high = min(float(output.min()), 0.0), max(float(output.max()), 0.0)
        if low == high:
            return output
        return rounded_input(output, scheme.model_copy(update={"range": (low, high), "signed": False}))

    return rounded_output
