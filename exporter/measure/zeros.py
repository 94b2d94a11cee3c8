"""What zeros in weights bought an artifact: how many there are in it, and its bytes as they would travel.

A general compressor finds zeros that no engine skips: a download, a package or an image layer is smaller by them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from exporter.types import Weight, Zeros

LEVEL = 6  # zlib's own default, and that of zip and gzip
COMPRESSOR = f"zlib, level {LEVEL}"
_PIECE = 1 << 20  # bytes in memory at a time
_FEW = 2  # matrices that are named


def compressed_bytes(files: Iterable[Path], progress: Callable[[int, int], None]) -> int:
    """Bytes of all the files, each compressed by itself; `progress` is told bytes, (read, of all)."""
    paths = list(files)
    total, read, size = sum(path.stat().st_size for path in paths), 0, 0
    for path in paths:
        compressor = zlib.compressobj(LEVEL)
        with path.open("rb") as opened:
            while piece := opened.read(_PIECE):
                size += len(compressor.compress(piece))
                read += len(piece)
                progress(read, total)
        size += len(compressor.flush())
    return size


def zero_share(weights: Sequence[Weight], zeros: Zeros | None) -> dict[str, Any]:
    """`share` of the numbers in the layers' matrices that are 0, tables left out; or None, and `reason`: why.

    `where`: what they were counted in; `engine`: what the engine makes of zeros. None too, where a target says nothing.
    """
    if zeros is None:
        return {"share": None, "where": None, "reason": "its target does not count zeros", "engine": None}
    layers = [weight for weight in weights if not weight.table]
    unread = [weight.name for weight in layers if weight.name not in zeros.counts]
    told = {"where": zeros.where, "engine": zeros.engine}
    if unread or not layers:
        named = ", ".join(unread[:_FEW]) + (f" and {len(unread) - _FEW} more" if len(unread) > _FEW else "")
        why = f"numbers that are not decoded here: {named}" if unread else "it has no layers that can be read"
        return {"share": None, "reason": why, **told}
    numbers = sum(weight.numbers for weight in layers)
    return {"share": sum(zeros.counts[weight.name] for weight in layers) / numbers, "reason": None, **told}
