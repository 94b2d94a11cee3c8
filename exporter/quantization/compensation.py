"""What GPTQ and SparseGPT have in common: a column is changed, and those behind it take back its error in the output.

Both are Optimal Brain Surgeon a column at a time (Frantar et al. 2022, arXiv 2210.17323, algorithm 1; Frantar and
Alistarh 2023, arXiv 2301.00774): the inverse Hessian's Cholesky factor has the corrections of all columns in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from exporter.errors import BuildError

if TYPE_CHECKING:
    from torch import Tensor

DAMPING = 0.01  # of the Hessian's mean diagonal, added to it
BLOCK = 128  # columns whose corrections are gathered before the rest of the matrix is touched
_ATTEMPTS = 6  # at inverting a Hessian, each with ten times the damping


def compensated(columns: Tensor, factor: Tensor, settle: Callable[[int, Tensor], Tensor]) -> Tensor:
    """What becomes of the columns [K, N] of a weight, worked on in place, one after the other.

    `settle` is told a column's place and the columns [1 to BLOCK, N] from there to its block's end, as corrected so
    far; it returns what the first of them shall be, [N]. `factor` [K, K] is inverse_factor's. What lies together in
    memory is worked on together: that is why the weight comes transposed.
    """
    import torch

    settled = torch.empty_like(columns)
    for begin in range(0, len(columns), BLOCK):
        block = columns[begin : begin + BLOCK]
        own = factor[begin : begin + BLOCK, begin : begin + BLOCK]
        errors = torch.empty_like(block)
        for place in range(len(block)):
            settled[begin + place] = settle(begin + place, block[place:])
            errors[place] = (block[place] - settled[begin + place]) / own[place, place]
            block[place + 1 :].addr_(own[place, place + 1 :], errors[place], alpha=-1)
        columns[begin + BLOCK :].addmm_(factor[begin : begin + BLOCK, begin + BLOCK :].T, errors, alpha=-1)
    return settled


def damping_of(hessian: Tensor, damping: float = DAMPING) -> float:
    """What is added to the diagonal of a Hessian [K, K]: a share of its mean; of 1 where no input ever came."""
    mean = hessian.diagonal().mean()
    return float(damping * mean) if mean > 0 else damping


def inverse_factor(hessian: Tensor, added: float) -> Tensor:
    """The upper Cholesky factor [K, K] of the damped Hessian's inverse, float32; computed in float64.

    Raises BuildError where it cannot be inverted, with ten times the damping each time that it is tried again.
    """
    import torch

    damped = hessian.to(torch.float64, copy=True)
    for _ in range(_ATTEMPTS):
        damped.diagonal().add_(added)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                factor: Tensor = upper.float()
                return factor
        added *= 10
    raise BuildError("the Hessian of its inputs cannot be inverted; give more calibration text (--calib-tokens)")
