"""The text of bench/results/litert.json: what LiteRT's precisions cost, and a conversion beside litert-torch alone."""

from __future__ import annotations

from bench.cells import (
    QUALITY,
    Result,
    heading,
    is_decoder,
    markdown,
    megabytes,
    number,
    quality_cells,
)
from bench.rows import figure, variant, verdict


def litert(result: Result) -> str:
    lines: list[str] = []
    for report in result["reports"]:
        decoder = is_decoder(report)
        names = ["target", "size, MB", "× fp32", *([] if decoder else ["max error"]), *QUALITY[decoder]]
        names += ["prefill, tok/s", "decode, tok/s"] if decoder else ["ms at 128"]
        rows = [cells(row, decoder) for row in report["results"]]
        title = f"{heading(report)}, {busy(report)}:"
        lines += [title, "", *markdown([*names, "peak RSS, MB", "gates"], rows), ""]
    figures, machine = result["figures"], result["machine"]
    lines += [converted(name, parts) for name, parts in figures["conversion"].items()]
    engine = figure(result["reports"][0]["results"][1], "artifact.engine")
    versions = result["versions"]
    here = (
        f"- {machine['cpu']}, {machine['cores']} cores; {engine}, litert-torch {versions['litert-torch']}, onnxruntime "
        f"{versions['onnxruntime']}, torch {versions['torch']}. Rounds of a model's rows are interleaved. Max error is "
        "the largest of a hidden state on short texts, alone and in a batch. "
        f"Calibrated on {figures['calibrated_tokens']:,} tokens of the text's second half."
    )
    return "\n".join([*lines, here])


def busy(report: Result) -> str:
    """What else ran while the rows were timed."""
    others = figure(report["results"][0], "speed.other_cores")
    return f"{report['machine']['threads']} threads, other processes on {number(others, '.1f')} cores meanwhile"


def cells(row: Result, decoder: bool) -> list[str]:
    found = [variant(row), megabytes(figure(row, "artifact.bytes"))]
    found += [number(figure(row, "artifact.size_ratio"), ".3f")]
    found += [] if decoder else [number(figure(row, "quality.logit_error.value"), ".1e")]
    found += quality_cells(row, decoder)
    if decoder:
        found.append(number(figure(row, "speed.prefill_tokens_per_s"), ",.0f"))
        found.append(number(figure(row, "speed.decode_tokens_per_s"), ".1f"))
    else:
        found.append(number(figure(row, "speed.latency_ms.prefill_128.p50"), ".1f"))
    found.append(megabytes(figure(row, "memory.peak_rss_bytes"), ",.0f"))
    return [*found, verdict(row)]


def converted(name: str, parts: Result) -> str:
    """A conversion in words."""
    whole, bare = parts["whole"], parts["bare"]
    peaks = [megabytes(one["peak_rss_bytes"], ",.0f") for one in (whole, bare)]
    sizes = [megabytes(one["bytes"]) for one in (whole, bare)]
    return (
        f"- {name} to fp32 with the default signatures, proven and named: {whole['s']:.1f} s and {peaks[0]} MB; by "
        f"litert-torch alone, the same module in a process of its own, {bare['s']:.1f} s and {peaks[1]} MB: "
        f"{whole['s'] / bare['s']:.2f}× and {whole['peak_rss_bytes'] / bare['peak_rss_bytes']:.2f}×. "
        f"The file has {sizes[0]} MB, and {sizes[1]}."
    )
