"""Generation in words: how far an artifact continues a prompt as the reference does, and how long one waits for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from exporter.report.table import name, rate


def generation_lines(reference: str, row: Mapping[str, Any]) -> Iterator[str]:
    """Nothing for a row of which nothing was measured, or an older exporter's. `reference` is that row's name."""
    told = row.get("generation") or {}
    if told.get("greedy_agreement") is not None and name(row) != reference:
        same = round(told["greedy_agreement"] * told["prompts"])
        size, asked = told["prompt_tokens"], f"{same} of {told['prompts']}"
        done = (
            f"{asked} sources are answered as the reference answers them"
            if size is None
            else f"{asked} prompts of {size} tokens are continued as the reference continues them"
        )
        yield (
            f"{done}, {told['new_tokens']} tokens at most; alike until the first difference: "
            f"{told['agreed_tokens_mean']:.1f} tokens in the mean, {told['agreed_tokens_median']:g} in the median"
        )
    elif told.get("not_compared"):
        yield f"not compared with the reference's continuations: {told['not_compared']}"
    if told.get("end_to_end_s") is not None:
        runs = told["end_to_end_runs"]
        yield (
            f"{told['end_to_end_new']} tokens after a prompt of {told['end_to_end_prompt']}: "
            f"{told['end_to_end_s']:.3g} s{f', the median of {runs}' if runs > 1 else ''}"
        )
    rates = {size: it for size, it in (told.get("tokens_per_s") or {}).items() if it is not None}
    if rates:
        many = ", ".join(f"{rate(it)} at {size}" for size, it in rates.items())
        yield f"new tokens per second, all sequences together, by how many are generated at once: {many}"
    if told.get("not_timed"):
        yield f"not timed: {told['not_timed']}"
