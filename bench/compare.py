"""What got slower, larger or worse between two measurements, what is new and what is gone.

    python -m bench.compare OLD NEW

OLD and NEW are results (bench/results/gguf.json), folders of them, or report.json of two runs; rows are matched by
model, label and variant. Exit status: 0 nothing is beyond its limit; 3 something is; 2 the arguments are wrong.

    slower  tokens a second, milliseconds (p50) and seconds; never between two machines. Below a second: noise.
    larger  bytes of artifacts; memory has a limit of its own, for it varies
    worse   a mean that lost more than --worse of its standard errors, the larger of the two. Where neither is known:
            more than 5% further from perfect. Less than 0.00005 is rounding. And a gate that now fails, a row that now
            has no figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bench.rows import Row, figure, variant, verdict

EXIT_WRONG, EXIT_BEYOND = 2, 3
PERFECT = {
    **dict.fromkeys(("ppl_ratio", "kl", "logit_error", "cache_kl", "regression_error"), 0),
    **dict.fromkeys(("top1", "cosine", "pearson", "spearman"), 1),
}
ROUNDING, WITHOUT_ERROR = 5e-5, 0.05
UNITS = {"_per_s": "rate", "_s": "time", "_ms": "time", "bytes": "size", "seconds": "time"}  # how a figure's name ends
HARDWARE = ("cpu", "cores", "threads", "gpu")  # decides speed


class Wrong(Exception):
    """An argument that cannot be compared, in one line."""


class Limits(NamedTuple):
    """What is no change yet: shares of the old figure, and standard errors for `worse`."""

    slower: float
    larger: float
    memory: float
    worse: float


class Change(NamedTuple):
    """A line of the table. `kind` is slower, larger, worse, new or gone."""

    kind: str
    row: str
    figure: str = ""
    old: str = ""
    new: str = ""
    by: str = ""


Numbers = Iterator[tuple[str, str, float]]  # path, unit, value
Found = Iterator[Change | None]  # of each figure that both have: a change beyond its limit, or None


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Results by name; a report.json is one that is called so, with one report."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if path.is_dir() and path / "report.json" in files:
        files = [path / "report.json"]  # a run's folder, which holds other files too
    if not files:
        raise Wrong(f"{path} holds no result; give a file or a folder of bench/results, or a report.json")
    results = {}
    for file in files:
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
            if "reports" not in value:
                value = {"machine": value["machine"], "reports": [{**value, "label": ""}], "figures": {}}
            flat = [row for report in value["reports"] for row in report["results"] if "ppl_ratio" in row]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Wrong(f"{file} is no result and no report.json ({type(error).__name__}: {error})") from error
        if flat:
            raise Wrong(f"{file} is of an older exporter: its rows have no groups; run it again with this one")
        results[file.stem] = value
    return results


def rows_of(result: Row) -> dict[str, tuple[Row, Row]]:
    """Each row with its report, under the words that it is known by in both."""
    return {
        " ".join(filter(None, (report["name"], report["label"], variant(row)))): (report, row)
        for report in result["reports"]
        for row in report["results"]
    }


def measured(value: Any, path: str, unit: str | None = None) -> Numbers:
    """Each number whose name, or whose group's, ends in a unit."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            found = next((kind for end, kind in UNITS.items() if name.endswith(end)), unit)
            if name not in ("p90", "p99"):  # of a few repeats they are chance
                yield from measured(item, f"{path}.{name}", found)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, Mapping):
                yield from measured(item, f"{path} ({item.get('name')})", unit)
    elif isinstance(value, int | float) and not isinstance(value, bool) and unit is not None:
        yield path.lstrip("."), unit, value


def numbers_of(row: Row) -> Numbers:
    yield from measured(row.get("speed"), "speed")
    yield from measured(row.get("memory"), "memory")
    kept = {"export_s": figure(row, "build.export_s"), "engine_bytes": figure(row, "build.engine.engine_bytes")}
    yield from measured(kept | {"export_peak_rss_bytes": figure(row, "build.export_peak_rss_bytes")}, "build")
    size, ratio = figure(row, "artifact.bytes"), figure(row, "artifact.size_ratio")
    if size is not None:
        yield "artifact.bytes", "size", size
    if ratio is not None:
        yield "artifact.size_ratio", "size", ratio


def compare_numbers(row: str, old: Numbers, new: Numbers, limits: Limits, speeds: bool) -> Found:
    before = {path: value for path, _, value in old}
    for path, unit, value in new:
        was = before.get(path)
        if was is None or (unit != "size" and not speeds):
            continue
        if unit == "time" and "_ms" not in path and max(was, value) < 1:
            continue
        if path == "artifact.size_ratio" and "artifact.bytes" in before:  # it says the same
            continue
        change = value / was - 1 if was else float(value > 0)
        memory = "rss" in path or path.startswith("memory.")
        limit = limits.slower if unit != "size" else limits.memory if memory else limits.larger
        kind = "larger" if unit == "size" else "slower"
        beyond = (-change if unit == "rate" else change) > limit
        yield Change(kind, row, path, f"{was:,.6g}", f"{value:,.6g}", f"{change:+.1%}") if beyond else None


def compare_quality(row: str, old: Row, new: Row, worse: float) -> Found:
    for name, perfect in PERFECT.items():
        was, value = figure(old, f"quality.{name}.value"), figure(new, f"quality.{name}.value")
        if was is None or value is None:
            continue
        known = (figure(one, f"quality.{name}.se") for one in (old, new))
        errors = [error for error in known if error is not None]
        lost = abs(value - perfect) - abs(was - perfect)
        allowed = worse * max(errors) if errors else WITHOUT_ERROR * abs(was - perfect)
        by = f"{lost / max(errors):.1f} standard errors" if errors and max(errors) else f"{value - was:+.2g}"
        change = Change("worse", row, f"quality.{name}", f"{was:.6g}", f"{value:.6g}", by)
        yield change if lost > max(allowed, ROUNDING) else None


def same_text(old: Row, new: Row) -> bool:
    about = ("text", "tokens_scored", "window", "stride")
    told = [{name: one["evaluation"].get(name) for name in about} for one in (old, new)]
    return all(told[0][name] == told[1][name] for name in about if None not in (told[0][name], told[1][name]))


def compare(name: str, old: Row, new: Row, limits: Limits) -> tuple[list[Change | None], list[str]]:
    """What was found; and what was not compared, with the reason."""
    here, there = ({key: one["machine"].get(key) for key in HARDWARE} for one in (new, old))
    speeds = here == there and here["cpu"] is not None
    notes = [] if speeds else [f"{name}: speeds are not compared, old is of {hardware(there)}, new of {hardware(here)}"]
    commands = [one.get("command") for one in (old, new) if not one.get("taken_over")]
    if len(set(commands)) > 1:
        notes.append(f"{name}: measured by {commands[0]}, and now by {commands[1]}")
    before, after = rows_of(old), rows_of(new)
    changes: list[Change | None] = [Change("gone", row) for row in before if row not in after]
    changes += [Change("new", row) for row in after if row not in before]
    for row in (row for row in after if row in before):
        (old_report, old_row), (new_report, new_row) = before[row], after[row]
        changes += compare_numbers(row, numbers_of(old_row), numbers_of(new_row), limits, speeds)
        words = verdict(old_row), verdict(new_row)
        if words[0] in ("passed", "the reference", "") and words[1] not in ("passed", "the reference", ""):
            changes.append(Change("worse", row, "gates", *words))
        if same_text(old_report, new_report):
            changes += compare_quality(row, old_row, new_row, limits.worse)
        else:
            notes.append(f"{name}: quality of {row} is not compared: it was measured on another text")
    changes += compare_numbers(name, measured(old["figures"], ""), measured(new["figures"], ""), limits, speeds)
    return changes, notes


def hardware(told: Row) -> str:
    if told["cpu"] is None:
        return "an unknown machine"
    return ", ".join(
        f"{value} {key}" if key in ("cores", "threads") else str(value) for key, value in told.items() if value
    )


def pairs(old: Path, new: Path) -> list[tuple[str, Row, Row]]:
    """The results that both have; two files are a pair whatever they are called."""
    before, after = read(old), read(new)
    if len(before) == len(after) == 1:
        [name], [was], [now] = after, before.values(), after.values()
        return [(name, was, now)]
    if not before.keys() & after.keys():
        raise Wrong(f"{old} and {new} have no result in common: {', '.join(before)}; {', '.join(after)}")
    return [(name, before[name], now) for name, now in after.items() if name in before]


def table(changes: list[Change]) -> str:
    widths = [max(len(change[at]) for change in changes) for at in range(len(Change._fields))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(one, widths, strict=True)) for one in changes)
    return "\n".join(line.rstrip() for line in lines)


def share(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / 100
    except ValueError:
        value = -1
    if not text.endswith("%") or not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"give a percentage such as 10%, not {text!r}")
    return value


def errors(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    shares = {"slower": "10%", "larger": "1%", "memory": "5%"}
    for name, default in shares.items():
        parser.add_argument(f"--{name}", type=share, default=default, help=f"the limit (default {default}%)")
    parser.add_argument("--worse", type=errors, default=2.0, help="the limit, in standard errors (default 2)")
    arguments = parser.parse_args()
    limits = Limits(arguments.slower, arguments.larger, arguments.memory, arguments.worse)
    try:
        compared = [compare(*pair, limits) for pair in pairs(arguments.old, arguments.new)]
    except Wrong as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_WRONG)
    changes = [change for found, _ in compared for change in found]
    for note in (note for _, notes in compared for note in notes):
        print(note)
    shown = [change for change in changes if change]
    if shown:
        print(table(sorted(shown, key=lambda change: ("slower", "larger", "worse", "new", "gone").index(change.kind))))
    counts = {kind: sum(change.kind == kind for change in shown) for kind in ("slower", "larger", "worse")}
    total = sum(change is None or change.kind in counts for change in changes)
    if not total:
        print(f"error: {arguments.old} and {arguments.new} have no figure in common", file=sys.stderr)
        sys.exit(EXIT_WRONG)
    print(f"{total} figures compared: {', '.join(f'{count} {kind}' for kind, count in counts.items())}")
    sys.exit(EXIT_BEYOND if any(counts.values()) else 0)


if __name__ == "__main__":
    main()
