"""Bytes of what a user must ship for inference: weights and graph; tokenizer and configuration are counted apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def sizes(manifest: Mapping[str, Any]) -> tuple[int, int]:
    """(weights and graph, everything else) in bytes, from an artifact's manifest."""
    files = {name: int(entry["bytes"]) for name, entry in manifest["files"].items()}
    weights = sum(files[name] for name in manifest["weights"])
    return weights, sum(files.values()) - weights
