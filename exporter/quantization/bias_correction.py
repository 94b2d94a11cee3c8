"""Bias correction (Nagel et al. 2019, arXiv 1906.04721, section 4.2; its empirical form, appendix D).

Rounding shifts the mean of a layer's outputs. On calibration text the shift is measured and taken from the layer's
bias, in the order of execution, so that each layer sees inputs whose means are mended already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.experts import expert_layers
from exporter.checkpoint.linear import asked, channels_last, weight_of, weighted_layers
from exporter.errors import BuildError
from exporter.progress import Counted, nobody
from exporter.quantization.grid import INT32, input_grid, quantized
from exporter.quantization.simulation import simulated
from exporter.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Corrected:
    """The layers whose bias was changed, and those that have a scheme and no bias: nothing can be mended there."""

    layers: tuple[str, ...]
    without_bias: tuple[str, ...]


def biased(model: Any, schemes: Mapping[str, Scheme | None]) -> list[str]:
    """The layers that have a scheme and a bias: what can be corrected.

    Experts are none of them: rounding moves tokens from one to another, and a mean over others is no shift.
    """
    linear, experts = weighted_layers(model), expert_layers(model)
    quantized = [name for name, scheme in schemes.items() if scheme is not None and name not in experts]
    return [name for name in quantized if linear[name].bias is not None]


def mean_outputs(model: Any, ids: Tensor, names: Iterable[str], progress: Counted = nobody) -> dict[str, Tensor]:
    """The mean output [N] of each linear layer over ids [windows, window], read as one batch: of the float model."""
    means: dict[str, Tensor] = {}
    wanted = list(names)

    def note(name: str) -> Callable[[Any, Any, Tensor], None]:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            means[name] = _mean(name, channels_last(module, output))
            progress(len(means), len(wanted))

        return hook

    if wanted:
        progress(0, len(wanted))
        _run(model, ids, {name: note(name) for name in wanted})
        progress(len(wanted), len(wanted))
    return means


def correct_biases(
    model: Any,
    ids: Tensor,
    schemes: Mapping[str, Scheme | None],
    expected: Mapping[str, Tensor],
    progress: Counted = nobody,
) -> Corrected:
    """Changes the biases in place so that the rounded model's layers have the `expected` mean outputs on ids.

    `expected` is mean_outputs of the float model on the same ids; weights may have been rounded since then. Some
    thousand tokens are enough: all are in memory at once. Raises BuildError for NaN or Inf.
    """
    linear = weighted_layers(model)
    quantized = [name for name, scheme in schemes.items() if scheme is not None]
    with_bias = [name for name in biased(model, schemes) if name in expected]
    mended: set[str] = set()

    def mend(name: str) -> Callable[[Any, Any, Tensor], Tensor]:
        def hook(module: Any, inputs: Any, output: Tensor) -> Tensor:
            shift = _mean(name, channels_last(module, output)) - expected[name]
            module.bias -= shift
            channels_last(module, output).sub_(shift)
            mended.add(name)
            progress(len(mended), len(with_bias))
            return output  # what comes after this layer sees it corrected, in this very pass

        return hook

    if with_bias:
        progress(0, len(with_bias))
        with simulated(model, schemes):
            _run(model, ids, {name: mend(name) for name in with_bias})
    return Corrected(tuple(with_bias), tuple(name for name in quantized if linear[name].bias is None))


def round_biases(model: Any, schemes: Mapping[str, Scheme | None]) -> None:
    """Rounds the biases of layers with a static input in place, to multiples of the input's step times the weight's.

    That is the scale of an integer product, to which engines add a bias in int32 (Jacob et al. 2017, arXiv 1712.05877,
    section 2.4). One that is too large for int32 stays: no target takes it as integers.
    """
    import torch

    linear = weighted_layers(model)
    for name, scheme in schemes.items():
        if scheme is None or scheme.range is None or scheme.group is not None or linear[name].bias is None:
            continue
        steps = quantized(weight_of(linear[name]), scheme).scales[:, 0].double() * input_grid(scheme)[0]
        codes = (linear[name].bias.double() / steps).round()
        if codes.abs().max() < INT32:
            with torch.no_grad():
                linear[name].bias.copy_(codes * steps)


def _mean(name: str, output: Tensor) -> Tensor:
    mean = output.reshape(-1, output.shape[-1]).mean(0)
    if not mean.isfinite().all():
        raise BuildError(f"{name} gives NaN or Inf on the calibration text: the model is broken, or overflows on it")
    return mean


def _run(model: Any, ids: Tensor, hooks: Mapping[str, Callable[..., Any]]) -> None:
    import torch

    linear = weighted_layers(model)
    head = model.get_output_embeddings()
    unseen = head is not None and all(linear[name] is not head for name in hooks)
    registered = [linear[name].register_forward_hook(hook) for name, hook in hooks.items()]
    if unseen:  # the logits of thousands of tokens are gigabytes, and nobody looks at them: one position's will do
        head.forward = lambda hidden, whole=head.forward: whole(hidden[..., :1, :])
    try:
        with torch.no_grad():
            asked(model, ids)
    finally:
        if unseen:
            del head.forward
        for one in registered:
            one.remove()
