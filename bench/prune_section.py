"""The text of bench/results/prune.json: what each method of pruning costs, and what distillation brings back."""

from __future__ import annotations

import math

from bench.cells import Result, heading, markdown, megabytes, models_of, number, with_error
from bench.rows import figure, variant

_TIMED = ", timed"  # how the label of bench.prune --speed-alone ends
_ELSEWHERE = "\\*"


def prune(result: Result) -> str:
    lines: list[str] = []
    cpus = list(dict.fromkeys(one["machine"]["cpu"] for one in result["reports"]))
    for reports in models_of(result["reports"]):
        shown = [one for one in reports if not one["label"].endswith(_TIMED)]
        rows = [row_cells(report, row, reports, cpus) for report in shown for row in report["results"][1:]]
        decoder = reports[0]["model"]["task"] == "text-generation"
        names = ["pruned", "target", "parameters, M", "size, MB", "ppl ratio ± se" if decoder else "cosine ± se"]
        names += [
            "loss recovered" if decoder else "",
            "prefill, tok/s",
            "decode, tok/s" if decoder else "ms at 128",
            "machine",
        ]
        lines += [f"{heading(reports[0])}:", "", *markdown(names, rows, words=2, last=False), ""]
    figures, machines = result["figures"], ", ".join(f"{n}, {cpu}" for n, cpu in enumerate(cpus, 1))
    about = (
        f"- Machines, of {result['machine']['cores']} cores: {machines}. "
        "A size or a speed is compared with those of its machine, where the unpruned model was measured too: an ONNX "
        "graph of 153.7 MB is an earlier exporter's. "
        f"Calibrated on {figures['calibrated_tokens']:,} tokens of the text's "
        "second half, other articles of the same kind; students learn on that half. Ratios are over the model before "
        "it was pruned: a student that learned the text's kind besides can be below 1."
    )
    meaning = (
        "- Loss recovered: of what the method added to the log-perplexity, the share that distillation took back. A "
        "cell that is empty was not measured."
    )
    words = (
        "- vocabulary: the tokens of the whole text stay, and their logits are what they were; it is measured against "
        "itself, for a perplexity over fewer tokens is another number."
    )
    students = (
        f"- {_ELSEWHERE}: size and speed were measured by themselves, after distillation of a student of 2 steps: it "
        "has the shapes, number formats and zeros of the one of 200."
    )
    short = [students] if any(one["label"].endswith(_TIMED) for one in result["reports"]) else []
    return "\n".join([*lines, about, meaning, words, *short, *drift(result["reports"])])


def drift(reports: list[Result]) -> list[str]:
    """How far each machine itself went: the unpruned decoder in torch was timed with each row, in jobs one by one."""
    rates: dict[str, list[float]] = {}
    for one in reports:
        rate = figure(one["results"][0], "speed.decode_tokens_per_s")
        if rate:
            rates.setdefault(one["machine"]["cpu"], []).append(rate)
    spans = [f"{min(of):.1f} to {max(of):.1f} tokens/s ({cpu})" for cpu, of in rates.items() if len(of) > 1]
    if not spans:
        return []
    told = (
        "- Speeds are of jobs one after the other: the unpruned model in torch, timed in each of them, decoded "
        f"{' and '.join(spans)}. Smaller differences than that mean nothing."
    )
    return [told]


def row_cells(report: Result, row: Result, reports: list[Result], cpus: list[str]) -> list[str]:
    """A row of a method, with or without distillation after it."""
    decoder = report["model"]["task"] == "text-generation"
    of, timed = where_timed(report, row, reports)
    cells = [
        report["label"],
        variant(row),
        f"{parameters(report) / 1e6:,.1f}",
        megabytes(figure(timed, "artifact.bytes")),
    ]
    cells.append(with_error(row, "ppl_ratio", ".4f") if decoder else with_error(row, "cosine", ".5f"))
    cells.append(recovered(report, row, reports) if decoder else "")
    cells.append(number(figure(timed, "speed.prefill_tokens_per_s"), ",.0f"))
    own = "decode_tokens_per_s" if decoder else "latency_ms.prefill_128.p50"
    machine = str(1 + cpus.index(of["machine"]["cpu"])) if timed["speed"]["measured"] else ""
    return [*cells, number(figure(timed, f"speed.{own}"), ".1f"), machine + ("" if of is report else f" {_ELSEWHERE}")]


def where_timed(report: Result, row: Result, reports: list[Result]) -> tuple[Result, Result]:
    """The report and the row that have a row's size and speed: its own, or what was measured of them by itself."""
    for other in reports:
        if other["label"] == report["label"] + _TIMED:
            return other, next(one for one in other["results"] if variant(one) == variant(row))
    return report, row


def parameters(report: Result) -> int:
    """Of the model that was exported."""
    cut = figure(report, "model.distill.cut.parameters_after") or figure(report, "model.prune.parameters_after")
    return int(cut or report["model"]["parameters"])


def recovered(report: Result, row: Result, reports: list[Result]) -> str:
    """Of a taught row, the share of the log-perplexity that its method had added and distillation took back."""
    method, _, taught = report["label"].partition(", ")
    if not taught:
        return ""
    before = [one for one in reports if one["label"] == method]
    ratios = [
        figure(other, "quality.ppl_ratio.value")
        for one in [*before, report]
        for other in one["results"]
        if variant(other) == variant(row)
    ]
    if len(ratios) < 2 or None in ratios:
        return ""
    return f"{1 - math.log(ratios[1]) / math.log(ratios[0]):.0%}"
