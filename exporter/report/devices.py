"""What a row that ran on a GPU says of it: which, its memory there, and what stayed on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_NAMED = 6  # operators on the CPU; report.json has them all


def device_lines(row: Mapping[str, Any]) -> Iterator[str]:
    """Nothing of a row that ran on the CPU, or of an earlier exporter, which knew no other place."""
    device = row["artifact"].get("device")
    if device in (None, "cpu"):
        return
    memory = row["memory"]["device_bytes"] or {}
    yield ": ".join([f"on {device}", *[", ".join(f"{name} {value / 1e6:,.1f} MB" for name, value in memory.items())]])
    if (placement := row["artifact"].get("placement")) is None:
        return
    on_cpu = placement["on_cpu"]
    named = [f"{count} {operator}" for operator, count in on_cpu.items()]
    more = f" and {len(named) - _NAMED} more kinds" if len(named) > _NAMED else ""
    yield (
        f"ONNX Runtime ran {placement['on_device']} nodes there and {sum(on_cpu.values())} on the CPU"
        f"{': ' + ', '.join(named[:_NAMED]) + more if named else ''}; {placement['copies']} copies between the two"
    )
