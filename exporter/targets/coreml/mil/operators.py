"""The table of MIL operators that can be run. Those of control flow, random numbers and images are not in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from exporter.targets.coreml.mil import elementwise, reductions
from exporter.targets.coreml.mil.compression import COMPRESSION
from exporter.targets.coreml.mil.indexing import INDEXING, SCATTERS
from exporter.targets.coreml.mil.normalization import NORMALIZATION
from exporter.targets.coreml.mil.pooling import POOLING
from exporter.targets.coreml.mil.products import PRODUCTS
from exporter.targets.coreml.mil.shapes import RANGES, SHAPES


@dataclass(frozen=True)
class Rule:
    """How an operator is run: by its parameters' names, with NumPy's arrays; floats are float32.

    `rounds`: it computes, so that what is declared float16 is rounded. `shares`: what it gives may be memory it got.
    """

    run: Callable[..., Any]
    rounds: bool = True
    shares: bool = False


OPERATORS: dict[str, Rule] = {
    **{name: Rule(run, rounds=False, shares=True) for name, run in (SHAPES | INDEXING).items()},
    **{name: Rule(run, rounds=False) for name, run in (elementwise.EXACT | reductions.EXACT).items()},
    **{
        name: Rule(run)
        for table in (elementwise.ELEMENTWISE, reductions.REDUCTIONS, NORMALIZATION, PRODUCTS, POOLING, COMPRESSION)
        for name, run in table.items()
    },
    **{name: Rule(run) for name, run in (SCATTERS | RANGES).items()},
}

READ, WRITE = "read_state", "write_state"  # the evaluator's own
TUPLES = ("values", "ref_tensors", "begins", "ends", "end_masks")  # parameters that take several arguments
RENAMED = {"input": "x"}  # a word of Python's
