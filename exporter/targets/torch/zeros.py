"""The zeros in a folder's safetensors, a tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from exporter.targets.torch.held import weights_of
from exporter.types import Zeros

# torchao's names of the codes of one weight and of their zero points, one a row.
_CODES, _ZERO_POINTS = "_weight_qdata", "_weight_zero_point"


def zeros_of(folder: Path, files: Sequence[str]) -> Zeros:
    """Of floats those that are 0, of codes those that mean 0."""
    from safetensors import safe_open

    layers = {weight.name for weight in weights_of(folder, files) if not weight.table}
    counts = {}
    for file in files:
        if not file.endswith(".safetensors"):
            continue
        with safe_open(folder / file, framework="pt") as opened:  # NumPy has no bfloat16
            names = set(opened.keys())
            for name in sorted(layers & names):
                point = name.removesuffix(_CODES) + _ZERO_POINTS
                zero = opened.get_tensor(point) if name.endswith(_CODES) and point in names else 0
                tensor = opened.get_tensor(name)
                counts[name] = int((tensor == zero).sum())
    return Zeros(counts, "PyTorch stores and multiplies a zero as any other number: no speed, and the same bytes")
