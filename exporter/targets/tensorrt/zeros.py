"""The zeros in the graph of an engine, and those that TensorRT can use: at 2:4, by the GPU's sparse tensor cores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exporter.targets.tensorrt.parts import parts_in, two_of_four_in, zero_counts_in
from exporter.types import Zeros


def zeros_of(folder: Path, files: Sequence[str]) -> Zeros:
    """Counted in the graph: an engine's weights are laid out for its kernels, and cannot be read."""
    told = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["build"]
    graphs = parts_in(folder)
    which = "the graph" if len(graphs) == 1 else "the graphs"
    return Zeros(zero_counts_in(folder), _engine(told, *two_of_four_in(graphs.values())), which)


def _engine(told: Mapping[str, Any], sparse: int, layers: int) -> str:
    """What the engine makes of zeros, by what is told of its build."""
    if not sparse:
        return "TensorRT has sparse tactics for 2:4, which no layer has: a zero is stored and multiplied as any number"
    held = f"2:4 holds in {sparse} of {layers} layers"
    if not told["sparse_tactics"]:
        return f"{held}, and float32 without TF32 has no sparse tactics: a zero is multiplied as any number"
    if told["built_by"] is None:
        return f"{held}: rebuild.sh allows sparse tactics (--sparsity=enable); no engine was built that tells of them"
    allowed = f"{held}, and the builder was allowed sparse tactics (SPARSE_WEIGHTS)"
    if told["sparse_layers"] is not None:
        return f"{allowed}; it took them for {told['sparse_layers']} layers, where they are faster than the dense ones"
    # Measured of TensorRT-RTX 1.7.1, for sm80, sm89, sm120 and its default: not a byte less than without the flag.
    rtx = "; its engine stores every number" if told["built_by"].startswith("tensorrt-rtx") else ""
    return f"{allowed}{rtx}; whether it took any it does not say, and only a GPU tells"
