"""What a written artifact's weights are: their numbers and bits, and the zeros among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Weight:
    """A weight matrix as an artifact holds it: how many numbers, of how many bits each, with their blocks' scales.

    `table`: an embedding, or a language model's head. `why`: what keeps it wider than was asked for, where known.
    """

    name: str
    numbers: int
    bits: float
    table: bool
    why: str = ""


@dataclass(frozen=True)
class Zeros:
    """The zeros in an artifact's layers, counted in its files, and what they buy there.

    `counts`: by a Weight's name, how many of its numbers are exactly 0 as the engine decodes them; a matrix that cannot
    be decoded is missing, and tables need not be there. `engine`: in a sentence, what the engine makes of zeros.
    `where`: what they were counted in, where it is not what is shipped.
    """

    counts: Mapping[str, int]
    engine: str
    where: str = "the artifact"
