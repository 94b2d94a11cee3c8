"""The columns that a report's table can have: each one's title, its unit, and a row's cell."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from exporter.report import timing
from exporter.report.forms import FORMS as PERPLEXITIES
from exporter.report.table import (
    Row,
    error,
    generates,
    generation,
    latency,
    megabytes,
    one_forward,
    rate,
    times,
    value,
)


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


def _percent(value: float | None) -> str | None:
    share = _floored(None if value is None else 100 * value, 2)
    return None if share is None else f"{share}%"


def _figure(name: str, with_error: bool, row: Row) -> str | None:
    return _with_error(value(row, name), error(row, name) if with_error else None)


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
_HEARD = (
    Column("Transcripts", "same", lambda row: _percent(value(row, "transcripts"))),
    Column("WER", "words", lambda row: _percent(value(row, "wer"))),
)
_GENERATION = (
    *_SIZE,
    _PPL,
    *(Column("PPL", form, partial(_figure, f"ppl_{form}", False)) for form in PERPLEXITIES),
    _COSINE,
    _KL,
    _TOP1,
    *_HEARD,
    Column("Greedy", "agree", lambda row: _percent(generation(row, "greedy_agreement"))),
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
    *_HEARD,
    Column("Speed", "× real time", lambda row: rate(row["speed"].get("times_real_time")), timed=True),
    Column("Speed", "pictures/s", lambda row: rate(row["speed"].get("pictures_per_s")), timed=True),
    Column("Latency", "ms p50", lambda row: rate(latency(row, one_forward(row), "p50")), timed=True),
    _RSS,
)
_DETAILS = (
    Column("Perplexity", "", lambda row: _with_error(value(row, "ppl"), None)),
    *(Column("PPL", f"{form} ± se", partial(_figure, f"ppl_{form}", True)) for form in PERPLEXITIES),
    Column("Bits", "byte ± se", partial(_figure, "bits_per_byte", True)),
    Column("KL se", "nats", lambda row: _small(error(row, "kl"))),
    Column("Top-1 se", "", lambda row: _percent(error(row, "top1"))),
    _COSINE,
    Column("Cosine se", "", lambda row: _small(error(row, "cosine"))),
    Column("Error se", "of sd", lambda row: _small(error(row, "regression_error"))),
    Column("Pearson", "", lambda row: _floored(value(row, "pearson"), 5)),
    Column("Spearman", "", lambda row: _floored(value(row, "spearman"), 5)),
    Column("Logit error", "max abs", lambda row: _small(value(row, "logit_error"))),
    Column("Processor", "max abs", lambda row: _small(value(row, "processor_error"))),
    Column("Cache KL", "nats", lambda row: _small(value(row, "cache_kl"))),
    Column("Prefill", "ms p50 / p90 / p99", lambda row: _percentiles(row, "prefill"), timed=True),
    Column("Picture", "ms p50 / p90 / p99", lambda row: _percentiles(row, "picture"), timed=True),
    Column("4 s of sound", "ms p50 / p90 / p99", lambda row: _percentiles(row, "sound"), timed=True),
    Column("First token", "ms p50 / p90 / p99", lambda row: _percentiles(row, "speech"), timed=True),
    Column("8 pictures", "ms p50 / p90 / p99", lambda row: _percentiles(row, "pictures_8"), timed=True),
    Column("Decode", "ms p50 / p90 / p99", lambda row: _percentiles(row, "decode"), timed=True),
    Column("Agreed", "tokens mean", lambda row: rate(generation(row, "agreed_tokens_mean"))),
    Column("Agreed", "tokens median", lambda row: rate(generation(row, "agreed_tokens_median"))),
    Column("End to end", "s", lambda row: rate(generation(row, "end_to_end_s"))),
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


def columns(report: Row) -> list[Column]:
    """The table's columns for this task, without those that no row has a number for."""
    return _measured(_GENERATION if generates(report) else _ENCODER, report)


def detail_columns(report: Row) -> list[Column]:
    """The columns of what else was measured, without the empty ones."""
    return _measured(_DETAILS, report)


def _measured(choice: tuple[Column, ...], report: Row) -> list[Column]:
    return [column for column in choice if any(column.cell(row) is not None for row in report["results"])]
