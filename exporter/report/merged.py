"""A merge's record in words: for the terminal and for the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def merge_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """The proof, what is known of the bases, and what it took; the steps themselves are in the history."""
    proof = record["proof"]
    for step in proof["steps"]:
        yield f"proof of {step.get('adapter', 'the merge')}, on {proof['on']}: {_agreement(step)}"
    if proof["saved"] is not None:
        yield f"saved in {proof['saved']['dtype']}, loaded again: {_agreement(proof['saved'])}"
    if proof["probe_kl"] is not None:
        yield f"answers as the probe file says: KL {proof['probe_kl']:.2g}"
    if record["merged_into"] is not None:
        yield f"merged into the {record['merged_into']} base{_other(proof['other_base'])}"
    if record.get("perplexity") is not None:
        yield f"perplexity {record['perplexity']:.4g}, as expected"
    for adapter in record["adapters"]:
        yield f"{adapter['path']}: all {adapter['tensors']} tensors used; {adapter['identity']}"
    yield f"took {record['seconds']:.1f} s and {record['peak_rss_bytes'] / 1e6:,.0f} MB"


def _other(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "; what the choice changes was not measured: the other base is not here, or does not fit"
    kl = "" if found["kl"] is None else f"KL {found['kl']:.2g}, "
    return f"; original + adapter differs from what was trained: {kl}largest difference {found['max_error']:.2g}"


def _agreement(found: Mapping[str, Any]) -> str:
    kl = "" if found["kl"] is None else f", KL {found['kl']:.2g} (limit {found['kl_limit']:.2g})"
    return f"largest error {found['max_error']:.2g} (limit {found['max_error_limit']:.2g}){kl}"
