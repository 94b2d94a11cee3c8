"""How a row of the report is worded: its numbers, its verdict. Shared by every form the report takes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from exporter.form import FORMS

Row = Mapping[str, Any]

# Escape sequences that engines colour their errors with, then what XML 1.0 forbids (section 2.2, Char).
_FORBIDDEN = re.compile("\x1b\\[[0-9;?]*[ -/]*[@-~]|[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def clean(value: Any) -> Any:
    """The same report without the characters that a terminal would obey or that XML forbids."""
    if isinstance(value, str):
        return _FORBIDDEN.sub("", value)
    if isinstance(value, Mapping):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value


def clip(text: str, length: int) -> str:
    """Text on one line, cut to a length."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def name(row: Row) -> str:
    """The variant's name, such as onnx:int8-weight."""
    return f"{row['target']}:{row['precision']}"


def verdict(report: Row, row: Row) -> str:
    """What became of a row, in a word or two: reference, passed, ok (no gates), gate failed, failed or skipped."""
    if any(not gate["passed"] for gate in row["gates"]):
        return "gate failed"
    if row["status"] != "ok":
        return str(row["status"])
    if name(row) == report["evaluation"]["reference"]:
        return "reference"
    return "passed" if row["gates"] else "ok"


def summary(report: Row) -> str:
    """The verdict's sentence: how many artifacts there are of each kind."""
    words = [verdict(report, row) for row in report["results"]]
    parts = [
        (words.count("passed"), "passed every gate"),
        (words.count("ok"), "measured without gates"),
        (words.count("gate failed"), "failed a gate"),
        (words.count("failed"), "could not be built or run"),
        (words.count("skipped"), "skipped"),
    ]
    total = sum(count for count, _ in parts)
    if not total:
        return "Only the reference was measured"
    listed = ", ".join(f"{count} {what}" for count, what in parts if count)
    return f"Of {total} artifact{'s' if total > 1 else ''}: {listed}"


def scored(report: Row) -> str:
    """How much was evaluated: "16,384 tokens", or "4 passages" where whole passages have one answer each."""
    count = report["evaluation"]["tokens_scored"]
    if count is None:
        return ""
    one = FORMS[report["model"]["task"]].unit
    return f"{count:,} {one}{'' if count == 1 else 's'}"


def short_text(report: Row) -> str | None:
    """What was used of a text that is shorter than --eval-tokens; None where it was not."""
    about, asked = report["evaluation"], (report.get("job") or {}).get("eval_tokens")
    used, window = about.get("tokens"), about["window"]
    if used is None or asked is None or window is None:
        return None
    # Passages are whole windows: what is over of the number that was asked for makes none.
    expected = asked if generates(report) else max(asked // window * window, min(asked, window))
    if used >= expected:
        return None
    return f"the text has {used:,} tokens to measure on, and {asked:,} were asked for (--eval-tokens): all were used"


def failure(gate: Row) -> str:
    """The line for a gate that did not pass."""
    return f"{gate['name']} is {gate_value(gate)}, limit {gate_limit(gate)}{gate['detail'] and ': '}{gate['detail']}"


def gate_limit(gate: Row) -> str:
    """A gate's limit with its direction, which its name begins with: min_top1, max_kl."""
    return f"{'≥' if gate['name'].startswith('min_') else '≤'} {gate['limit']:g}"


def gate_value(gate: Row) -> str:
    """A gate's value, with all its digits where fewer would make it look equal to its limit."""
    value, limit = gate["value"], gate["limit"]
    if value is None:
        return "not measured"
    text = f"{value:.5g}"
    return repr(value) if float(text) == limit != value else text


def megabytes(count: float | None) -> str | None:
    """Bytes in MB (10^6)."""
    if count is None:
        return None
    size = count / 1e6
    return f"{size:.3f}" if size < 1 else f"{size:,.1f}" if size < 1000 else f"{size:,.0f}"


def rate(value: float | None) -> str | None:
    """Tokens per second, or anything else of which three digits say enough."""
    if value is None:
        return None
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.3f}"


def times(value: float | None) -> str | None:
    """A ratio."""
    return None if value is None else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def value(row: Row, figure: str) -> float | None:
    """A figure of the quality; None where it was not measured, or the report's exporter did not know it yet."""
    return (row["quality"].get(figure) or {}).get("value")


def error(row: Row, figure: str) -> float | None:
    """Its standard error."""
    return (row["quality"].get(figure) or {}).get("se")


def generation(row: Row, name: str) -> Any:
    """What of its generation a row has; None where there is nothing, as in a report of an older exporter."""
    return (row.get("generation") or {}).get(name)


def latency(row: Row, phase: str, percentile: str) -> float | None:
    """Milliseconds, or None: `phase` is prefill or decode, `percentile` p50, p90 or p99."""
    return ((row["speed"]["latency_ms"] or {}).get(phase) or {}).get(percentile)


def one_forward(row: Row) -> str:
    """The phase of a model that is asked once for a sample: a picture, a sound, or the longest text."""
    return next((one for one in ("picture", "sound") if latency(row, one, "p50") is not None), "prefill")


def generates(report: Row) -> bool:
    """Whether the model generates text: it has a decode loop then, else a latency."""
    return FORMS[report["model"]["task"]].cached
