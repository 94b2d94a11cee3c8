"""Bytes of what a user must ship for inference: weights and graph; tokenizer and configuration are counted apart.

What neither is, such as the graph that an engine was built from, is in the folder and in no size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def sizes(manifest: Mapping[str, Any]) -> tuple[int, int]:
    """(weights and graph, tokenizer and configuration) in bytes, from an artifact's manifest."""
    extras = manifest.get("extras", ())
    files = {name: int(entry["bytes"]) for name, entry in manifest["files"].items() if name not in extras}
    weights = sum(files[name] for name in manifest["weights"])
    return weights, sum(files.values()) - weights
