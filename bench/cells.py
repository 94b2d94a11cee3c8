"""What the tables of results have in common: cells, headings, and a table's lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.rows import figure

Result = Mapping[str, Any]
QUALITY = {True: ["ppl ratio ± se", "KL", "top-1"], False: ["cosine ± se"]}  # of a decoder or not: columns


def number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def megabytes(count: float | None, form: str = ",.1f") -> str:
    return "" if count is None else format(count / 1e6, form)


def with_error(row: Result, name: str, form: str) -> str:
    """A figure and its standard error, which is 0 where there is one passage only."""
    value, error = figure(row, f"quality.{name}.value"), figure(row, f"quality.{name}.se")
    return "" if value is None else f"{value:{form}} ± {error or 0:{form}}"


def markdown(names: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1, last: bool = True) -> list[str]:
    """A table whose first columns are words, and `last` its last one too; the others are figures."""
    rule = "|---" * words + "|---:" * (len(names) - words - last) + "|---" * last + "|"
    head, *body = ("| " + " | ".join(cells) + " |" for cells in (names, *rows))
    return [head, rule, *body]


def packages(result: Result) -> str:
    """The versions that decide what an ONNX artifact is and what it is held against."""
    # onnxruntime-genai built the decoders' float graphs of older results; those of today do not tell its version.
    names = ("torch", "transformers", "onnxruntime", "onnxruntime-genai")
    return ", ".join(f"{name} {result['versions'][name]}" for name in names if name in result["versions"])


def is_decoder(report: Result) -> bool:
    return bool(report["model"]["task"] == "text-generation")


def heading(report: Result) -> str:
    """The model and what it was measured on."""
    about = report["evaluation"]
    unit = "tokens" if is_decoder(report) else f"passages of {about['window']} tokens"
    return f"**{report['name']}**, {about['tokens_scored']:,} {unit} of {about['text']}"


def circumstances(report: Result) -> str:
    here = report["machine"]
    return f"{here['threads']} threads, load average before it {here['load_average'][0]:.1f}"


def quality_cells(row: Result, decoder: bool) -> list[str]:
    """What stands below QUALITY's names."""
    if not decoder:
        return [with_error(row, "cosine", ".5f")]
    kl, top1 = figure(row, "quality.kl.value"), figure(row, "quality.top1.value")
    return [with_error(row, "ppl_ratio", ".4f"), number(kl, ".5f"), number(top1, ".4f")]


def models_of(reports: Sequence[Result]) -> Iterator[list[Result]]:
    """The reports of each model, in the order in which the models come."""
    for name in dict.fromkeys(report["name"] for report in reports):
        yield [report for report in reports if report["name"] == name]


def listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in values.items())
