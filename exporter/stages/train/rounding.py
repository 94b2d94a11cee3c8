"""Rounding that can be trained: forward it is exporter.quantization.grid's to the bit, backward it lets gradients
through.

Weights and inputs: the straight-through estimator (Bengio et al. 2013, arXiv:1308.3432), with a gradient of 0 for what
the grid cuts off. Steps and ranges are learned with LSQ's gradients (Esser et al. 2019, arXiv:1902.08153; for a range
with two ends LSQ+, Bhalgat et al. 2020, arXiv:2004.09576), each as the logarithm of its ratio to where it began (Jain
et al. 2019, arXiv:1903.08066): it stays positive, and one learning rate suits steps of every size.

torchao's QAT is not used: its fake quantizers have no per-tensor static inputs, learn no ranges of inputs, count
symmetric 4 bits from -8, and choose their steps by another rule than the grid that is shipped.

torch is imported at the top, for autograd functions are classes: import this file inside functions only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from exporter.quantization.grid import coded, input_grid, levels, quantized, rounded_input, step_of
from exporter.scheme import Scheme

_LORA_SCALE = 2.0  # alpha / r, as it is mostly chosen


class _Weight(torch.autograd.Function):
    """[N, groups, size] and steps [N, groups] to the weight [N, K] that the codes stand for."""

    @staticmethod
    def forward(ctx: Any, groups: Tensor, steps: Tensor, zeros: Tensor, scheme: Scheme) -> Tensor:
        ctx.save_for_backward(groups, steps, zeros)
        ctx.levels = levels(scheme)
        return coded(groups, steps, zeros, scheme).floats()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        groups, steps, zeros = ctx.saved_tensors
        lowest, highest = ctx.levels
        gradient = gradients[0].reshape(groups.shape)
        exact = groups / steps[..., None]
        code = exact.round() + zeros[..., None]
        inside = (code >= lowest) & (code <= highest)
        value = code.clamp(lowest, highest) - zeros[..., None]  # in steps
        of_steps = (gradient * (value - exact * inside)).sum(-1)
        return gradient * inside, of_steps, None, None


class _StaticInput(torch.autograd.Function):
    """Inputs of any shape, rounded within [low, high]: two scalars, of which the scheme holds the values."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, low: Tensor, high: Tensor, scheme: Scheme) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.grid = input_grid(scheme)
        return rounded_input(inputs, scheme)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (inputs,), (gradient,) = ctx.saved_tensors, gradients
        step, zero, lowest, highest = ctx.grid
        exact = inputs / step
        code = exact.round() + zero
        below, above = code < lowest, code > highest
        inside = ~(below | above)
        # Within the range a value moves with the step, which is the range's width over the number of steps.
        of_step = (gradient * (code - zero - exact) * inside).sum() / (highest - lowest)
        of_low = (gradient * below).sum() - of_step
        of_high = (gradient * above).sum() + of_step
        return gradient * inside, of_low, of_high, None


class _DynamicInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, scheme: Scheme) -> Tensor:
        return rounded_input(inputs, scheme)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _apply(function: Any, *arguments: Any) -> Tensor:
    result: Tensor = function.apply(*arguments)  # torch leaves it untyped
    return result


class RoundedWeight(torch.nn.Module):
    """Parametrizes a layer's weight: what is stored, and the LoRA factors if any, to what the codes stand for.

    The steps are learned; zero points stay where the grid put them at the start. `transposed`: GPT-2's Conv1D stores
    [inputs, outputs]. A weight that is 0 stays 0, as it was pruned. `rounding` False: the stored weight itself, which
    is the float teacher's while only LoRA's factors are trained.
    """

    _used: Tensor | None

    def __init__(self, stored: Tensor, scheme: Scheme, transposed: bool, lora: int | None, seed: int) -> None:
        super().__init__()
        weight = stored.detach().T if transposed else stored.detach()
        start = quantized(weight.contiguous(), scheme)
        self.rounding, self._scheme, self._transposed = True, scheme, transposed
        self.register_buffer("_zeros", start.zeros.float())
        self.register_buffer("_start", start.scales)
        self.register_buffer("_used", weight != 0 if bool((weight == 0).any()) else None)
        self.log_steps = torch.nn.Parameter(torch.zeros_like(start.scales))
        self._lora = lora is not None
        if lora is not None:
            generator = torch.Generator().manual_seed(seed)
            factor = torch.randn(lora, weight.shape[1], generator=generator) / weight.shape[1] ** 0.5
            self.lora_a = torch.nn.Parameter(factor)
            self.lora_b = torch.nn.Parameter(torch.zeros(weight.shape[0], lora))  # so that training starts at W

    def forward(self, stored: Tensor) -> Tensor:
        if not self.rounding:
            return stored
        weight = stored.T if self._transposed else stored
        if self._lora:
            weight = weight + _LORA_SCALE * (self.lora_b @ self.lora_a)
        if self._used is not None:
            weight = weight * self._used
        start, zeros = self.get_buffer("_start"), self.get_buffer("_zeros")
        steps = start * self.log_steps.exp()
        steps = steps + (step_of(steps, self._scheme) - steps).detach()  # the gradient is the learned one's
        groups = weight.reshape(*start.shape, -1)
        rounded = _apply(_Weight, groups, steps, zeros, self._scheme)
        return rounded.T if self._transposed else rounded


class RoundedInput(torch.nn.Module):
    """A layer's forward pre-hook that rounds its input: dynamic, or within a range that is learned.

    A symmetric range stays symmetric, and an end that is 0 stays 0: the format of the codes does not change.
    """

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self.rounding, self._scheme = True, scheme
        if scheme.range is not None:
            self.log_range = torch.nn.Parameter(torch.zeros(1 if scheme.symmetric_input else 2))

    def ends(self) -> tuple[Tensor, Tensor]:
        """The learned range, two scalars."""
        assert self._scheme.range is not None
        low, high = self._scheme.range
        ratios = self.log_range.exp()
        return low * ratios[0], high * ratios[-1]

    def scheme(self) -> Scheme:
        """The scheme with the range as it is now."""
        if self._scheme.range is None:
            return self._scheme
        low, high = self.ends()
        return self._scheme.model_copy(update={"range": (low.item(), high.item())})

    def forward(self, layer: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if not self.rounding:
            return inputs
        if self._scheme.range is None:
            return (_apply(_DynamicInput, inputs[0], self._scheme), *inputs[1:])
        return (_apply(_StaticInput, inputs[0], *self.ends(), self.scheme()), *inputs[1:])
