"""A pruning's record in words: for the terminal and for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

# Of a run: what its rows can be compared with, and what they cannot.
NOTHING_BESIDE = (
    "sizes are over the float32 weights before it was pruned, answers and speed beside that model's, the reference; "
    "that model's artifacts in other formats are not here: the same job without --prune, into another folder, makes "
    "and measures them"
)


def prune_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """What it left, and what stayed as it was; the steps themselves are in the history."""
    before, after = record["parameters_before"], record["parameters_after"]
    if after != before:
        yield f"{before:,} parameters before, {after:,} after ({after / before:.1%})"
    for step in record["steps"]:
        if "share" in step:
            yield f"{step['method']}:{step['amount']}: {step['share']:.1%} of the weights of the pruned layers are 0"
        for why, count in Counter(step.get("dense", {}).values()).most_common():
            yield f"{count} layer{'s stay' if count > 1 else ' stays'} dense: {why}"
    if record.get("text"):
        yield f"calibrated on {record['text']}"
