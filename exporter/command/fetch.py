"""What a target needs besides packages, put into the cache."""

from __future__ import annotations

from pathlib import Path

from exporter.store import cache_folder
from exporter.targets.known import get, missing


def fill(target: str, source: Path | None) -> str:
    """Fills the cache, from `source` where there is no network; what was done, in a line. Raises ExporterError."""
    wanted = get(target)
    if (absent := missing(wanted, wanted.default)) is not None:
        raise absent
    if wanted.fetch is None:
        return f"{target} needs nothing but its packages"
    return f"{target}: {wanted.fetch(cache_folder(), source)}"
