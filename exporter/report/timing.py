"""What must be known of a row's speed: who slowed it, how often it was timed, and what it may be compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from exporter.types import Variant

Row = Mapping[str, Any]
_BUSY = 0.25  # share of the cores: others that took more have slowed what was timed


def reference_of(report: Row) -> Row | None:
    """The reference's own row, where there is one."""
    named = report["evaluation"]["reference"]
    return next((row for row in report["results"] if str(Variant(row["target"], row["precision"])) == named), None)


def when(row: Row) -> str:
    """When the round began in which a row was timed; "" in a report of an exporter that timed all rows in one."""
    return row["speed"].get("measured") or ""


def together(row: Row, other: Row) -> bool:
    """Whether two rows were timed in turns, in one round: else the machine may have changed between them."""
    return when(row) == when(other)


def busy(report: Row, row: Row) -> bool:
    """Whether other processes kept more than a quarter of the cores busy while a row was timed."""
    others = row["speed"].get("other_cores")
    return others is not None and others > _BUSY * report["machine"]["cores"]


def most_busy(report: Row) -> float | None:
    """The most cores that others kept busy while any row was timed."""
    return max((one for row in report["results"] if (one := row["speed"].get("other_cores")) is not None), default=None)


def notes(report: Row, row: Row) -> Iterator[str]:
    """A line for each thing that must be known of a row's speed."""
    speed, base = row["speed"], reference_of(report)
    if not _timed(row):
        return
    if busy(report, row):
        cores = report["machine"]["cores"]
        yield f"speed: other processes kept {speed['other_cores']:.1f} of {cores} cores busy while it was measured"
    if (speed.get("rounds") or 0) < (speed.get("rounds_asked") or 0):
        limit = f"--speed-budget {speed['budget_s']:g}, in seconds, had no room for more"
        yield f"speed: {speed['rounds']} of {speed['rounds_asked']} rounds; {limit}"
    if base is not None and _timed(base) and not together(row, base):
        began = when(row)[:16].replace("T", " ") or "by an earlier exporter"
        yield (
            f"speed: timed in another round ({began}) than the reference's, and not compared with it; --remeasure "
            "times all rows in one"
        )


def _timed(row: Row) -> bool:
    return bool(row["speed"]["prefill_tokens_per_s"] or row["speed"]["decode_tokens_per_s"])
