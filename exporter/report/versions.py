"""Reports of earlier versions, read as if they had been written today."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from exporter.job_keys import RENAMED
from exporter.report.document import VERSION
from exporter.report.result import Result
from exporter.report.winners import winners

READABLE = (1, VERSION)

# A row of version 1 had its figures side by side: where each is now.
_QUALITY = ("ppl", "ppl_ratio", "kl", "top1", "cosine", "logit_error", "cache_kl", "tokenizer_errors")
_PLACES = {
    "artifact": {name: name for name in ("bytes", "size_ratio", "tokenizer_bytes", "engine")},
    "speed": {name: name for name in ("prefill_tokens_per_s", "decode_tokens_per_s", "latency_ms", "untimed")},
    "memory": {"peak_rss_bytes": "peak_rss_bytes", "device_bytes": "device_memory_bytes"},
    "build": {
        "export_s": "export_s",
        "export_peak_rss_bytes": "export_peak_rss_bytes",
        "quantization": "quantization",
        "engine": "build",
    },
}


def upgraded(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report of any of the READABLE versions as one of the newest. No figure is made up: what it lacks is null.

    Who won is found in its rows; the lines that run them it does not have.
    """
    new = _regrouped(report)
    if "winners" not in new and "results" in new:
        new["winners"] = winners(new)
    return new


def _regrouped(report: Mapping[str, Any]) -> dict[str, Any]:
    report = {**report, "evaluation": dict(report.get("evaluation", {}))}
    if "model" in report:
        later_stages = {stage: report["model"].get(stage) for stage in ("prune", "distill")}
        report["model"] = {**report["model"], **later_stages}
    for later in ("tokens", "perplexity", "pooling", "data"):
        report["evaluation"].setdefault(later, None)  # in its place where it is there: the page lists them in order
    if report["schema_version"] == VERSION:
        return report
    # The first exporters knew neither merges that prove themselves nor pruning nor training.
    model = {"merge": None, "prune": None, "distill": None, "qat": None, **report["model"]}
    rows = [_row(old) for old in report["results"]]
    return {**report, "schema_version": VERSION, "model": model, "job": _job(report["job"]), "results": rows}


def _job(old: Mapping[str, Any]) -> dict[str, Any]:
    """A job of version 1, whose targets' and stages' options had no sections yet."""
    job: dict[str, Any] = {name: value for name, value in old.items() if name not in RENAMED}
    for name, places in RENAMED.items():
        value = old.get(name)
        for section, key in places if value is not None else ():
            told = _options(str(value)) if name == "qat" else {key: value}
            job[section] = {**job.get(section, {}), **told}
    return job


def _options(text: str) -> dict[str, str]:
    """What training was asked for in one text, steps=200,data=FILE; a comma in a file's name separates nothing."""
    pieces = (piece.partition("=") for piece in re.split(r",(?=\s*[a-z_]+\s*=)", text))
    return {name.strip(): value.strip() for name, _, value in pieces}


def _row(old: Mapping[str, Any]) -> dict[str, Any]:
    """A row of version 1 in groups; a key that was added in its time may be missing."""
    groups: dict[str, dict[str, Any]] = {
        group: {new: old.get(name) for new, name in places.items()} for group, places in _PLACES.items()
    }
    groups["quality"] = {name: {"value": old.get(name), "se": old.get(f"{name}_se")} for name in _QUALITY}
    groups["quality"]["tokenizer_errors"]["detail"] = old.get("tokenizer_difference")
    row = Result(old["target"], old["precision"], old["status"], old["reason"], old["path"])
    row.add(groups)
    return row.to_json() | {"gates": old["gates"]}
