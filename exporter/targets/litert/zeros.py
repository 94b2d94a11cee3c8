"""The zeros in a written file's layers, a weight in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exporter.targets.litert.flatbuffer import kind_of, read_model
from exporter.targets.litert.held import FILE, weights_of
from exporter.targets.litert.places import module_of
from exporter.types import Zeros

_STORED = {"FLOAT32": np.float32, "FLOAT16": np.float16, "INT8": np.int8}


def zeros_of(folder: Path, files: Sequence[str] = ()) -> Zeros:
    """Of codes as they are stored: their zero point is 0."""
    program = read_model(folder / FILE)
    layers = {one.name for one in weights_of(folder) if not one.table}
    counts: dict[str, int] = {}
    for tensor in (tensor for graph in program.subgraphs for tensor in graph.tensors):
        data = program.buffers[tensor.buffer].data
        full: str = tensor.name.decode()
        name = module_of(full) or full
        if name in layers and name not in counts and data is not None:
            values = _codes(tensor, np.asarray(data))
            counts[name] = int(values.size - np.count_nonzero(values))
    return Zeros(counts, "no sparse weights: a zero is stored and multiplied as any other number")


def _codes(tensor: Any, data: Any) -> Any:
    if kind_of(tensor) == "INT4":  # two in a byte
        return np.stack([data & 15, data >> 4])
    return data.view(_STORED[kind_of(tensor)])
