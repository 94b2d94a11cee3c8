"""The weight matrices of a folder's safetensors, from their headers: no weight is read."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from exporter.types import Weight

_TABLES = re.compile(r"embed|lm_head|\bwte\b|\bwpe\b|\bshared\b")  # transformers' names of embeddings and heads


def weights_of(folder: Path, files: Sequence[str]) -> list[Weight]:
    """Each matrix by its own type; a scale for each row is none."""
    from safetensors import safe_open

    found = []
    for file in files:
        if not file.endswith(".safetensors"):
            continue
        with safe_open(folder / file, framework="np") as opened:
            for name in opened.keys():  # noqa: SIM118  # it is no mapping
                part = opened.get_slice(name)
                shape, kind = part.get_shape(), part.get_dtype()
                if len(shape) > 1 and min(shape[-2:]) > 1:
                    bits = int(re.sub(r"\D.*", "", kind.lstrip("BFIU")) or 8)
                    found.append(Weight(name, math.prod(shape), bits, bool(_TABLES.search(name))))
    return found
