"""Which artifact to take: the smallest and the fastest of those that kept their gates.

Speed carries noise. Only rows that were timed in turns, in one round, are compared, and rows that their own spread does
not tell apart win together: of those the smallest stands first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exporter.report import table, timing

Row = Mapping[str, Any]
SMALLEST = "smallest"
_PHASES = {"fastest decode": "decode", "fastest prefill": "prefill"}  # an encoder has the second alone
NOTHING = "Nothing passed its gates: there is no artifact to take."


def winners(report: Row) -> list[dict[str, Any]]:
    """The report's `winners`: an entry for each title and each row that has it; none where no row passed.

    Without the lines that run them, which are their targets' to tell.
    """
    passed = [row for row in _passed(report) if row["path"]]
    won = {SMALLEST: _smallest(passed)}
    won |= {what: _fastest(report, passed, phase) for what, phase in _PHASES.items()}
    return [
        {"what": what, "variant": table.name(row), "folder": row["path"], "run": None}
        for what, rows in won.items()
        for row in rows
    ]


def _passed(report: Row) -> list[Row]:
    """Not the reference, which is no artifact, and not what was measured without gates."""
    return [row for row in report["results"] if table.verdict(report, row) == "passed"]


def _smallest(passed: Sequence[Row]) -> list[Row]:
    sized = [row for row in passed if row["artifact"]["bytes"]]
    least = min((row["artifact"]["bytes"] for row in sized), default=0)
    return [row for row in sized if row["artifact"]["bytes"] == least]


def _fastest(report: Row, passed: Sequence[Row], phase: str) -> list[Row]:
    """The fastest, and those that are as fast within the spread of what was timed."""
    timed = _of_one_round(report, passed, phase)
    best = max(timed, key=lambda row: _rate(row, phase), default=None)
    if best is None:
        return []
    alike = [
        row
        for row in timed
        if _rate(best, phase) <= _rate(row, phase) * (1 + max(_spread(row, phase), _spread(best, phase)))
    ]
    return sorted(alike, key=lambda row: row["artifact"]["bytes"] or 0)


def _rate(row: Row, phase: str) -> float:
    return float(row["speed"][f"{phase}_tokens_per_s"] or 0)


def _spread(row: Row, phase: str) -> float:
    """How much slower than the median the slow tokens or prompts were (p90), as a share of the median.

    With five rounds, whose calls are not independent of each other, that is about two standard errors of the difference
    of two medians.
    """
    name = phase if phase in (row["speed"]["latency_ms"] or {}) else f"{phase}_128"  # a model of few positions
    middle, slow = table.latency(row, name, "p50"), table.latency(row, name, "p90")
    return max(0.0, slow / middle - 1) if middle and slow else 0.0


def _of_one_round(report: Row, passed: Sequence[Row], phase: str) -> list[Row]:
    """Those that were timed beside the reference; where none was, those of the latest round."""
    timed = [row for row in passed if _rate(row, phase)]
    base = timing.reference_of(report)
    beside = [row for row in timed if timing.together(row, base)] if base and _rate(base, phase) else []
    return beside or [row for row in timed if timing.together(row, max(timed, key=timing.when))]


@dataclass(frozen=True)
class Told:
    """One artifact in words: all that it won as one title, what it won it by, where it is, the line that runs it."""

    title: str
    variant: str
    facts: tuple[str, ...]
    folder: str = ""
    run: str | None = None


def told(report: Row) -> Iterator[Told]:
    """The winners as a reader wants them: several titles of one artifact are one."""
    won: dict[str, list[str]] = {}
    for entry in report["winners"]:
        won.setdefault(entry["what"], []).append(entry["variant"])
    titles: dict[str, list[str]] = {}
    for what, variants in won.items():
        titles.setdefault(variants[0], []).append(what)
    rows = {table.name(row): row for row in report["results"]}
    for variant, named in titles.items():
        entry = next(one for one in report["winners"] if one["variant"] == variant)
        facts = (_fact(report, rows, what, won[what]) for what in named)
        title = " and ".join(filter(None, (", ".join(named[:-1]), named[-1])))
        yield Told(f"{title.capitalize()} within the gates", variant, tuple(facts), entry["folder"], entry["run"])


def _fact(report: Row, rows: Mapping[str, Row], what: str, variants: Sequence[str]) -> str:
    """By what one title was won, and all that must be known of it."""
    first, *others = variants
    row = rows[first]
    if what == SMALLEST:
        return "; ".join([_size(row), *([f"as small: {', '.join(others)}"] if others else [])])
    phase = _PHASES[what]
    base, mine = timing.reference_of(report), _rate(row, phase)
    words = [f"{phase} {table.rate(mine)} tokens/s"]
    if base is not None and _rate(base, phase):
        if timing.together(row, base):
            words[0] += f", {mine / _rate(base, phase):.1f} × the reference's"
        else:
            words.append("timed in another round than the reference: not compared")
    if others:
        words.append(f"as fast within the spread: {', '.join(others)}")
    timed = [one for one in _passed(report) if _rate(one, phase)]
    compared = [one for one in timed if timing.together(one, row)]
    left = len(timed) - len(compared)
    words += [f"{left} timed in another round: not compared"] * bool(left)
    # Those that it was faster than may have been disturbed as well.
    words += ["⚠ on a busy machine"] * any(timing.busy(report, one) for one in compared)
    return "; ".join(words)


def _size(row: Row) -> str:
    size, ratio = f"{table.megabytes(row['artifact']['bytes'])} MB", table.times(row["artifact"]["size_ratio"])
    return size if ratio is None else f"{size}, {ratio} × the reference's"


def reference(report: Row) -> Told | None:
    """The reference in the same words: what the winners are held against."""
    row = timing.reference_of(report)
    if row is None or not row["artifact"]["bytes"]:
        return None
    size = f"{table.megabytes(row['artifact']['bytes'])} MB"
    speeds = [f"{phase} {table.rate(_rate(row, phase))} tokens/s" for phase in _PHASES.values() if _rate(row, phase)]
    return Told("Reference", table.name(row), (size, *speeds))


def nothing_passed(report: Row) -> str | None:
    """The line for a report with artifacts of which none may be taken; None where there is one, or there are none."""
    artifacts = [row for row in report["results"] if table.name(row) != report["evaluation"]["reference"]]
    return NOTHING if artifacts and not _passed(report) else None
