"""How a row of the report is worded: its columns, its numbers, its verdict. Shared by every form the report takes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from exporter.form import FORMS
from exporter.report import timing

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


def _small(value: float | None) -> str | None:
    """A value that may be tiny: five decimals, or an exponent where they would say little."""
    if not value:
        return None if value is None else "0"
    return f"{value:.5f}" if 1e-4 <= abs(value) < 1 else f"{value:.3f}" if 1 <= abs(value) < 1e4 else f"{value:.1e}"


def _floored(value: float | None, decimals: int) -> str | None:
    """Rounded down, so that 0.99999 is never shown as 1. The first rounding undoes the noise of binary fractions."""
    if value is None:
        return None
    scale = 10**decimals
    return f"{math.floor(round(value * scale, 6)) / scale:.{decimals}f}"


def _with_error(value: float | None, error: float | None) -> str | None:
    if value is None:
        return None
    fixed = abs(value) < 10
    text = f"{value:.4f}" if fixed else f"{value:,.5g}"
    if not error:  # the reference's ratio to itself has none
        return text
    return f"{text} ± {error:.4f}" if fixed and error >= 1e-4 else f"{text} ± {error:.1g}"


def rate(value: float | None) -> str | None:
    """Tokens per second, or anything else of which three digits say enough."""
    if value is None:
        return None
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.3f}"


def times(value: float | None) -> str | None:
    """A ratio."""
    return None if value is None else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def _percent(value: float | None) -> str | None:
    share = _floored(None if value is None else 100 * value, 2)
    return None if share is None else f"{share}%"


def value(row: Row, figure: str) -> float | None:
    """A figure of the quality; None where it was not measured, or the report's exporter did not know it yet."""
    return (row["quality"].get(figure) or {}).get("value")


def error(row: Row, figure: str) -> float | None:
    """Its standard error."""
    return (row["quality"].get(figure) or {}).get("se")


def latency(row: Row, phase: str, percentile: str) -> float | None:
    """Milliseconds, or None: `phase` is prefill or decode, `percentile` p50, p90 or p99."""
    return ((row["speed"]["latency_ms"] or {}).get(phase) or {}).get(percentile)


def _percentiles(row: Row, phase: str) -> str | None:
    values = [rate(latency(row, phase, p)) for p in ("p50", "p90", "p99")]
    return None if not any(values) else " / ".join(value or "–" for value in values)


def _opens(graph: Row | None) -> str | None:
    """The first ONNX Runtime that opens a graph, and what it is stamped with."""
    if graph is None:
        return None
    opset = graph["opsets"].get("ai.onnx", "–")
    return f"{graph['min_onnxruntime'] or 'unknown'} (opset {opset}, IR {graph['ir_version']})"


@dataclass(frozen=True)
class Column:
    """A column of the table: its title, its unit, and a row's cell (None: not measured); whether it is of speed."""

    title: str
    unit: str
    cell: Callable[[Row], str | None]
    timed: bool = False

    def shown(self, report: Row, row: Row) -> str | None:
        """The cell, with a warning at a speed that was measured beside busy processes."""
        text = self.cell(row)
        return f"{text} ⚠" if text is not None and self.timed and timing.busy(report, row) else text


_SIZE = (
    Column("Size", "MB", lambda row: megabytes(row["artifact"]["bytes"])),
    Column("Size", "×", lambda row: times(row["artifact"]["size_ratio"])),
)
_PPL = Column("PPL ratio", "± se", lambda row: _with_error(value(row, "ppl_ratio"), error(row, "ppl_ratio")))
_COSINE = Column("Cosine", "mean", lambda row: _floored(value(row, "cosine"), 5))
_KL = Column("KL", "nats", lambda row: _small(value(row, "kl")))
_TOP1 = Column("Top-1", "agree", lambda row: _percent(value(row, "top1")))
_PREFILL = Column("Prefill", "tok/s", lambda row: rate(row["speed"]["prefill_tokens_per_s"]), timed=True)
_RSS = Column("RSS", "MB", lambda row: megabytes(row["memory"]["peak_rss_bytes"]))
_GENERATION = (
    *_SIZE,
    _PPL,
    _COSINE,
    _KL,
    _TOP1,
    _PREFILL,
    Column("Decode", "tok/s", lambda row: rate(row["speed"]["decode_tokens_per_s"]), timed=True),
    _RSS,
)
_ENCODER = (
    *_SIZE,
    _PPL,
    _COSINE,
    _KL,
    _TOP1,
    Column("Accuracy", "labels", lambda row: _percent(value(row, "accuracy"))),
    Column("F1", "macro", lambda row: _floored(value(row, "f1"), 4)),
    Column("Spearman", "labels", lambda row: _floored(value(row, "label_spearman"), 4)),
    Column("Error", "of sd", lambda row: _small(value(row, "regression_error"))),
    Column("Spearman", "rank", lambda row: _floored(value(row, "spearman"), 4)),
    _PREFILL,
    Column("Latency", "ms p50", lambda row: rate(latency(row, "prefill", "p50")), timed=True),
    _RSS,
)
_DETAILS = (
    Column("Perplexity", "", lambda row: _with_error(value(row, "ppl"), None)),
    Column("KL se", "nats", lambda row: _small(error(row, "kl"))),
    Column("Top-1 se", "", lambda row: _percent(error(row, "top1"))),
    _COSINE,
    Column("Cosine se", "", lambda row: _small(error(row, "cosine"))),
    Column("Error se", "of sd", lambda row: _small(error(row, "regression_error"))),
    Column("Pearson", "", lambda row: _floored(value(row, "pearson"), 5)),
    Column("Spearman", "", lambda row: _floored(value(row, "spearman"), 5)),
    Column("Logit error", "max abs", lambda row: _small(value(row, "logit_error"))),
    Column("Cache KL", "nats", lambda row: _small(value(row, "cache_kl"))),
    Column("Prefill", "ms p50 / p90 / p99", lambda row: _percentiles(row, "prefill"), timed=True),
    Column("Decode", "ms p50 / p90 / p99", lambda row: _percentiles(row, "decode"), timed=True),
    Column("Named", "share", lambda row: _percent(row["artifact"].get("named_share"))),
    Column("Weights", "bits", lambda row: times(row["artifact"].get("bits_per_weight"))),
    Column("Zeros", "share", lambda row: _percent((row["artifact"].get("zeros") or {}).get("share"))),
    Column("Compressed", "MB", lambda row: megabytes((row["artifact"].get("zeros") or {}).get("compressed_bytes"))),
    Column("Proven", "tokens", lambda row: rate(row["artifact"].get("proven_tokens"))),
    Column("Tokenizer", "MB", lambda row: megabytes(row["artifact"]["tokenizer_bytes"])),
    Column("Engine", "× graph", lambda row: times((row["build"]["engine"] or {}).get("engine_over_onnx"))),
    Column("ONNX Runtime", "from", lambda row: _opens(row["build"].get("graph"))),
    Column("Export", "s", lambda row: rate(row["build"]["export_s"])),
    Column("Export RSS", "MB", lambda row: megabytes(row["build"]["export_peak_rss_bytes"])),
    Column("Engine", "", lambda row: row["artifact"]["engine"]),
    Column("Folder", "", lambda row: row["path"]),
)


def generates(report: Row) -> bool:
    """Whether the model generates text: it has a decode loop then, else a latency."""
    return FORMS[report["model"]["task"]].cached


def columns(report: Row) -> list[Column]:
    """The table's columns for this task, without those that no row has a number for."""
    return _measured(_GENERATION if generates(report) else _ENCODER, report)


def detail_columns(report: Row) -> list[Column]:
    """The columns of what else was measured, without the empty ones."""
    return _measured(_DETAILS, report)


def _measured(choice: tuple[Column, ...], report: Row) -> list[Column]:
    return [column for column in choice if any(column.cell(row) is not None for row in report["results"])]
