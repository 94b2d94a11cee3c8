"""What zeros bought an artifact of a pruned model: counted in its files, by an operation of a worker."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from exporter.measure.zeros import COMPRESSOR, compressed_bytes, zero_share
from exporter.process import Session
from exporter.stages.prune.options import Pruning
from exporter.store import read_manifest
from exporter.targets import known


def has_zeros(prunings: Iterable[Pruning], model: Path) -> bool:
    """Whether weights were made 0: by this run, or by the `exporter compress` that wrote the model's folder."""
    if any(one.how.kind == "zeros" for one in prunings):
        return True
    return bool((read_manifest(model) or {}).get("zeros"))


def measure_zeros(session: Session, target: str, folder: str, files: list[str]) -> dict[str, Any]:
    """A worker's operation: the share of zeros in an artifact's layers, and its bytes when they are compressed.

    What measure.zeros.zero_share tells, with `compressed_bytes` and the `compressor`.
    """
    its, written = known.get(target), Path(folder)
    told = zero_share(its.weights(written, files) if its.weights else (), its.zeros and its.zeros(written, files))
    size = compressed_bytes([written / file for file in files], session.megabytes("compressing, to tell its bytes"))
    return told | {"compressed_bytes": size, "compressor": COMPRESSOR}
