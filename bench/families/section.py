"""The text of bench/results/families.json: what each family gets of each target, and the reasons in full."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from bench.cells import Result, markdown, packages
from bench.families.family import ASKED, CHECKED
from bench.families.outcome import FAILED, GATES, REFUSED, RIGHT, WRONG
from exporter.targets.folder.markdown import text


class _Reasons:
    """Reasons by number, each once, in the order in which they come."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def cell(self, word: str, reason: str | None) -> str:
        if not reason:
            return word
        return f"{word} ({self._numbers.setdefault(reason, len(self._numbers) + 1)})"

    def lines(self) -> list[str]:
        return [f"{number}. {text(reason)}" for reason, number in self._numbers.items()]


def families(result: Result) -> str:
    figures, here = result["figures"], result["machine"]
    rows, reasons = figures["families"], _Reasons()
    whole = figures["decoders"] + figures["encoders"]
    counts = {column: Counter(row[column]["outcome"] for row in rows) for column in ASKED}
    head = (
        f"{len(rows)} of {whole} families ({figures['decoders']} decoders, {figures['encoders']} encoders and "
        f"classifiers) were examined: {'; '.join(f'{column} {_counted(counts[column])}' for column in ASKED)}. "
        f"{packages(result)}; {here['cpu']}, {here['cores']} cores."
    )
    earlier = sum(row["key"] != figures["key"] for row in rows)
    if earlier:
        head += f" Of {earlier} the row is by an earlier state of the program."
    body = [
        [
            row["name"],
            row["architecture"],
            *(_asked(row[column], reasons) for column in ASKED),
            *(_checked(row["refused"], target, reasons) for target in CHECKED),
        ]
        for row in rows
    ]
    names = ["family", "architecture", *ASKED, *CHECKED]
    return "\n".join([head, "", *markdown(names, body, words=len(names), last=False), "", *reasons.lines()])


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[word]} {word}" for word in (RIGHT, GATES, REFUSED, WRONG, FAILED) if counts.get(word))


def _asked(found: Mapping[str, Any], reasons: _Reasons) -> str:
    """right; else the word and why."""
    if found["outcome"] == RIGHT:
        return reasons.cell(RIGHT, None)
    when = f" ({found['when']}, exit status {found['status']})" if "when" in found else ""
    return reasons.cell(found["outcome"], found["what"] + when)


def _checked(refused: Mapping[str, str | None], target: str, reasons: _Reasons) -> str:
    if target not in refused:
        return ""
    reason = refused[target]
    return reasons.cell(REFUSED, reason) if reason else "taken"
