"""What TensorRT will refuse of a graph, before its parser does."""

from __future__ import annotations

from pathlib import Path


def refused(model_onnx: Path) -> list[str]:
    """One line for each thing."""
    return []
