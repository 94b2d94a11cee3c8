"""float32 numbers rounded to float16's, in place.

NumPy's own conversion and back takes three times as long, and an emulated prediction is made of it.
"""

from __future__ import annotations

import numpy as np

from exporter.targets.coreml.mil.blob import Array
from exporter.targets.coreml.mil.threads import spread

_CHUNK = 1 << 16  # numbers that stay in the processor's cache between the steps
_PART = 1 << 17  # numbers for a thread at a time: fewer are not worth it
_EXPONENT = 0x7F800000  # float32's bits
_LARGE = (127 + 15) << 23  # the exponent of 32768: somewhere above it float16 rounds to infinity, or it is no number
_SMALLEST = (127 - 14) << 23  # the exponent below which float16's grid gets no finer
_GRID = (13 << 23) | 0x400000  # what makes 1.5 * 2**(e + 13) of the exponent e


def round_to_half(x: Array) -> None:
    """To the nearest, ties to even, as float16 does; beyond its largest number infinity.

    Adding 1.5 * 2**(e + 13) to a float32 of exponent e leaves 10 bits of its mantissa, and subtracting it again gives
    the rounded number.
    """
    if not x.flags.c_contiguous or x.size < 64:
        x[...] = x.astype(np.float16)
        return
    flat = x.reshape(-1)
    parts = [flat[begin : begin + _PART] for begin in range(0, flat.size, _PART)]
    if len(parts) == 1:
        _round(flat)
    else:
        spread(_round, parts)


def _round(flat: Array) -> None:
    grid = np.empty(min(_CHUNK, flat.size), np.int32)
    for begin in range(0, flat.size, _CHUNK):
        part = flat[begin : begin + _CHUNK]
        step = grid[: part.size]
        np.bitwise_and(part.view(np.int32), _EXPONENT, out=step)
        if step.max() >= _LARGE:
            part[...] = part.astype(np.float16)
            continue
        np.maximum(step, _SMALLEST, out=step)
        np.add(step, _GRID, out=step)
        part += step.view(np.float32)
        part -= step.view(np.float32)
