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
    return next((row for row in report["results"] if _name(row) == named), None)


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


def notes(report: Row) -> list[str]:
    """A line for each thing that must be known of the rows' speed, with the rows that it is true of."""
    timed, found = [row for row in report["results"] if _timed(row)], dict[str, list[str]]()
    for row in timed:
        for note in _notes(report, row):
            found.setdefault(note, []).append(_name(row))
    named = {note: "every row" if len(names) == len(timed) else ", ".join(names) for note, names in found.items()}
    return [f"speed of {names}: {note}" for note, names in named.items()]


def _name(row: Row) -> str:
    return str(Variant(row["target"], row["precision"]))


def _notes(report: Row, row: Row) -> Iterator[str]:
    speed, base = row["speed"], reference_of(report)
    if busy(report, row):
        kept = f"{speed['other_cores']:.1f} of {report['machine']['cores']} cores"
        yield f"⚠ other processes kept {kept} busy while it was measured (--remeasure: again)"
    if (speed.get("rounds") or 0) < (speed.get("rounds_asked") or 0):
        limit = f"--speed-budget {speed['budget_s']:g}, in seconds, had no room for more"
        yield f"{speed['rounds']} of {speed['rounds_asked']} rounds; {limit}"
    if base is not None and _timed(base) and not together(row, base):
        began = when(row)[:16].replace("T", " ") or "by an earlier exporter"
        yield (
            f"timed in another round ({began}) than the reference's, and not compared with it; --remeasure "
            "times all rows in one"
        )


def _timed(row: Row) -> bool:
    return any(row["speed"].get(f"{rate}_per_s") for rate in ("prefill_tokens", "decode_tokens", "pictures"))
