"""The zeros in a GGUF file's layers, a tensor in memory at a time, as gguf's own code decodes llama.cpp's blocks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from exporter.targets.gguf.types import weights_of
from exporter.types import Zeros


def zeros_of(folder: Path, files: Sequence[str]) -> Zeros:
    """What rounds to 0 in a block is one too; a type with an offset need not have a 0 at all."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    layers = {weight.name for weight in weights_of(folder, files) if not weight.table}
    counts = {}
    for file in files:
        for tensor in GGUFReader(folder / file).tensors:
            if tensor.name in layers:
                try:
                    numbers = dequantize(tensor.data, tensor.tensor_type)
                except NotImplementedError:  # a type that llama.cpp has and gguf's code cannot decode
                    continue
                counts[tensor.name] = int(numbers.size - np.count_nonzero(numbers))
    return Zeros(counts, "llama.cpp stores and multiplies a zero as any other number: no speed, and the same bytes")
