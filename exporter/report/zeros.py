"""What zeros in weights bought an artifact, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from exporter.report.table import megabytes


def zeros_lines(row: Mapping[str, Any]) -> Iterator[str]:
    """What a row says of its zeros; nothing where none were looked for."""
    found = row["artifact"].get("zeros")
    if found is None:
        return
    if found["share"] is None:
        yield f"how many of its weights are 0 is not known: {found['reason']}"
    else:
        yield f"{found['share']:.1%} of the linear layers' weights are 0, counted in {found['where']}"
    size, small = row["artifact"]["bytes"], found["compressed_bytes"]
    if size and small is not None:
        less = f"{1 - small / size:.1%} less" if small < size else "no less"
        yield f"{megabytes(size)} MB, compressed {megabytes(small)} MB ({found['compressor']}): {less}"
    yield found["engine"] or "what its engine makes of zeros is not known: its target does not say"
