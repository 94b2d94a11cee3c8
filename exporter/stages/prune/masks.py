"""Which weights stay, as booleans: exactly as many as asked for, and the same ones each time.

Of weights that are equal, those go first that come first. Scores are finite float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_HALF = 16  # bits


def share_of(share: float, count: int) -> int:
    """floor(share * count), of the share as it is written: 0.29 of 100 are 29, though 0.29 * 100 is below that."""
    return math.floor(Fraction(repr(share)) * count)


def keep_share(scores: Tensor, share: float) -> Tensor:
    """Bool like scores [N, K]: in each row all but the share_of(share, K) smallest stay."""
    return _all_but(scores, share_of(share, scores.shape[-1]))


def keep_2_of_4(scores: Tensor) -> Tensor:
    """Bool like scores [N, K], K a multiple of 4: of each four neighbours in a row the two largest stay."""
    rows, columns = scores.shape
    return _all_but(scores.reshape(rows, columns // 4, 4), 2).reshape(rows, columns)


def _all_but(scores: Tensor, count: int) -> Tensor:
    """All but the `count` smallest along the last axis."""
    import torch

    smallest = scores.argsort(dim=-1, stable=True)[..., :count]
    return torch.ones_like(scores, dtype=torch.bool).scatter_(-1, smallest, False)


def keep_largest(values: Sequence[Tensor], dropped: int) -> Iterator[Tensor]:
    """Yields a bool like each of several tensors: of all of them together all but the `dropped` nearest to 0 stay.

    Without its sign a float32's bits, read as an integer, are in the order of the numbers: the upper halves are
    counted, then the lower ones of the bin in which the border falls. So nothing is sorted, and beside one tensor at a
    time nothing is copied, though all layers of a model are compared.
    """
    import torch

    upper = sum(torch.bincount((_bits(one) >> _HALF).view(-1), minlength=1 << _HALF) for one in values)
    assert isinstance(upper, torch.Tensor)
    high, below = _bin(upper, dropped)
    lower = torch.zeros(1 << _HALF, dtype=torch.int64)
    for one in values:
        bits = _bits(one)
        lower += torch.bincount(bits[bits >> _HALF == high] & ((1 << _HALF) - 1), minlength=1 << _HALF)
    low, smaller = _bin(lower, dropped - below)
    border, equal = high << _HALF | low, dropped - below - smaller  # so many of those on the border go too
    for one in values:
        bits = _bits(one)
        keep = bits >= border
        first = (bits == border).view(-1).nonzero()[:equal]
        keep.view(-1)[first] = False
        equal -= len(first)
        yield keep


def _bits(values: Tensor) -> Tensor:
    """Of float32 without the sign, as int32, contiguous."""
    import torch

    return values.contiguous().view(torch.int32) & 0x7FFFFFFF


def _bin(counts: Tensor, place: int) -> tuple[int, int]:
    """The bin in which the number at this place of the order lies, and how many lie in the bins before it."""
    import torch

    ends = counts.cumsum(0)
    found = int(torch.searchsorted(ends, place, right=True).clamp(max=len(ends) - 1))
    return found, int(ends[found] - counts[found])
