"""The integer grids that quantized numbers lie on: the one place that knows how a weight or an input is rounded.

Simulation, the methods that choose rounded weights, training and the targets all round here, so that what was
simulated is what is shipped. All arithmetic is float32.

A weight that lies on a grid of its scheme already, as after GPTQ, training or dequantization, keeps it: the codes that
made it are found again and nothing is lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.quantization.palette import palettized
from exporter.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

# 4-bit ranges that are tried for each group: the one with the least squared error is taken.
_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
_SAMPLED_GROUPS, _SAMPLED_VALUES = 64, 64
INT32 = 2**31  # biases are added to integer products in 32 bits
_HALF = 2.0**-14, 65504.0  # between them float16 has eleven bits
_FLOAT32 = 2.0**-21  # of a step that is found again: float32 rounded its multiples
_OFF_GRID = 1e-3  # of a step: further off than float32 rounding ever brings a value of the grid


@dataclass(frozen=True)
class Codes:
    """A weight [N, K] as integers: weight = scale * (code - zero).

    `codes`: int16 [N, groups, size], from -127 (4 bits: -7) where symmetric, else from 0. `scales` float32 and `zeros`
    int16 are [N, groups]; symmetric ones are 0.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor

    def floats(self) -> Tensor:
        """The weight [N, K] that the codes stand for, float32."""
        values = (self.codes - self.zeros[..., None]).float() * self.scales[..., None]
        return values.reshape(len(values), -1)


def quantized(weight: Tensor, scheme: Scheme, importance: Tensor | None = None) -> Codes:
    """The codes of a float32 weight [N, K]; K must be a multiple of the scheme's group.

    `importance` [K] >= 0: how much a squared error in each input channel counts where ranges are compared.
    """
    groups = weight.reshape(len(weight), -1, scheme.group or weight.shape[1])
    counts = None if importance is None else importance.reshape(groups.shape[1:])
    steps = _own_steps(groups, scheme)
    if steps is not None:
        return coded(groups, *steps, scheme)
    shrinks = _SHRINK if scheme.bits == 4 else (1.0,)
    best, *others = (coded(groups, *scaled(groups, scheme, shrink), scheme) for shrink in shrinks)
    if not others:
        return best
    error = _errors(groups, best, counts)
    for tried in others:
        tried_error = _errors(groups, tried, counts)
        better = tried_error < error
        error = error.where(~better, tried_error)
        best = Codes(
            best.codes.where(~better[..., None], tried.codes),
            best.scales.where(~better, tried.scales),
            best.zeros.where(~better, tried.zeros),
        )
    return best


def rounded(weight: Tensor, scheme: Scheme) -> Tensor:
    """A weight [N, K] as the scheme's codes, or its palettes, hold it, float32."""
    if scheme.palette:
        return palettized(weight, scheme)
    return quantized(weight, scheme).floats()


def rounded_input(inputs: Tensor, scheme: Scheme) -> Tensor:
    """Inputs of any shape as the scheme sees them, float32: dynamic per row, the last axis being the channels."""
    if scheme.range is None:
        if scheme.input == "float":
            return inputs
        scale = (inputs.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-12)
        return (inputs / scale).round() * scale
    step, zero, low, high = input_grid(scheme)
    return input_codes(inputs, step, zero, low, high).sub(zero) * step


def input_codes(inputs: Tensor, step: float, zero: int, low: int, high: int) -> Tensor:
    """Static inputs of any shape as the codes of `input_grid`, in float32."""
    return (inputs / step).round_().add_(zero).clamp_(low, high)  # in place: at long prompts a pass over memory counts


def input_grid(scheme: Scheme) -> tuple[float, int, int, int]:
    """(scale, zero point, lowest code, highest code) of a static input."""
    assert scheme.range is not None
    low, high = scheme.range
    if scheme.symmetric_input:
        return high / 127, 0, -128, 127  # QuantizeLinear saturates there; weights have no -128
    scale = (high - low) / 255
    return scale, round(-low / scale), 0, 255


def levels(scheme: Scheme) -> tuple[int, int]:
    """The lowest and the highest code of a weight."""
    top = (1 << (scheme.bits - 1)) - 1
    return (-top, top) if scheme.symmetric else (0, 2 * top + 1)


def scaled(groups: Tensor, scheme: Scheme, shrink: float = 1.0) -> tuple[Tensor, Tensor]:
    """Scales and zero points, both float32 [N, groups], that span [N, groups, size] times `shrink`."""
    lowest, highest = levels(scheme)
    if scheme.symmetric:
        scales = step_of(groups.abs().amax(-1) * (shrink / highest), scheme)
        return scales, scales.new_zeros(scales.shape)
    low, high = groups.amin(-1).clamp_max(0) * shrink, groups.amax(-1).clamp_min(0) * shrink
    scales = step_of((high - low) / (highest - lowest), scheme)
    return scales, (-low / scales).round().clamp(lowest, highest)


def step_of(scales: Tensor, scheme: Scheme) -> Tensor:
    """Steps [N, groups] as a scheme has them: of groups, of which there are many, such as float16 holds.

    A target may then store them in half of the space. All stay float32 here.
    """
    scales = scales.where(scales > 0, 1.0)
    if scheme.group is None:
        return scales
    least, most = _HALF
    return scales.half().float().where((scales >= least) & (scales <= most), scales)


def in_half(scales: Tensor) -> Tensor | None:
    """Steps as float16, where it holds each; None where it does not, as of a grid that others made."""
    least, most = _HALF
    half = scales.half()
    near = (half.float() - scales).abs() <= scales * _FLOAT32
    return half if bool((near & (scales >= least) & (scales <= most)).all()) else None


def coded(groups: Tensor, scales: Tensor, zeros: Tensor, scheme: Scheme) -> Codes:
    """Values [N, groups, size] rounded to the codes of given scales and zero points."""
    import torch

    lowest, highest = levels(scheme)
    codes = ((groups / scales[..., None]).round() + zeros[..., None]).clamp(lowest, highest)
    return Codes(codes.to(torch.int16), scales, zeros.to(torch.int16))


def _errors(groups: Tensor, codes: Codes, counts: Tensor | None) -> Tensor:
    values = (codes.codes - codes.zeros[..., None]) * codes.scales[..., None]
    squares = (values - groups).square()
    return (squares if counts is None else squares * counts).sum(-1)


def _own_steps(groups: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor] | None:
    """Scales and zero points of the grid that the values lie on already; None where they lie on none.

    A group that does not use its extreme codes spans fewer steps than the grid has: each number of steps is tried, the
    largest first, for most groups use nearly all.
    """
    flat = groups.reshape(-1, groups.shape[-1])
    sample = flat[:: max(len(flat) // _SAMPLED_GROUPS, 1)]
    # Nearly all weights that come here are on no grid: one group says so at a hundredth of the price of all.
    if not (_may_have_steps(sample[sample.abs().amax(-1).argmax()], scheme) and _steps(sample, scheme)[1].all()):
        return None
    scales, found = _steps(flat, scheme)
    if not found.all():
        return None
    scales = scales.reshape(groups.shape[:-1])
    if scheme.symmetric:
        return scales, scales.new_zeros(scales.shape)
    return scales, (-groups.amin(-1).clamp_max(0) / scales).round()


def _may_have_steps(group: Tensor, scheme: Scheme) -> bool:
    """Whether the first values of a group [size] are multiples of any step that its span may have."""
    import torch

    lowest, highest = levels(scheme)
    span = _span(group, scheme)
    if span == 0:
        return True
    counts = torch.arange(highest - (0 if scheme.symmetric else lowest), 0, -1)
    multiples = group[:_SAMPLED_VALUES] / (span / counts)[:, None]
    return bool(((multiples - multiples.round()).abs() < _OFF_GRID).all(-1).any())


def _span(groups: Tensor, scheme: Scheme) -> Tensor:
    """From the least value to the greatest, 0 among them, of [..., size]; where symmetric from 0."""
    if scheme.symmetric:
        return groups.abs().amax(-1)
    return groups.amax(-1).clamp_min(0) - groups.amin(-1).clamp_max(0)


def _steps(flat: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """For [groups, size]: the smallest step whose multiples all the values are, and whether there is one."""
    import torch

    lowest, highest = levels(scheme)
    span = _span(flat, scheme)
    scales, left = torch.ones_like(span), span > 0
    for steps in range(highest - (0 if scheme.symmetric else lowest), 0, -1):
        [rows] = left.nonzero(as_tuple=True)
        if len(rows) == 0:
            break
        step = span[rows] / steps
        multiples = flat[rows] / step[:, None]
        exact = ((multiples - multiples.round()).abs() < _OFF_GRID).all(-1)
        scales[rows[exact]] = step[exact]
        left[rows[exact]] = False
    return scales, ~left
