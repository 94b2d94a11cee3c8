"""What a perplexity can be of beside a token, and what the report says of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What every tokenizer leaves as it is, and the window's own.
UNITS, SEQUENCE = ("word", "byte", "character"), "sequence"
FORMS = (*UNITS, SEQUENCE)


def perplexity_line(evaluation: Mapping[str, Any]) -> str | None:
    """What the other forms of the perplexity are of; None where none was asked for."""
    told = evaluation.get("perplexity")
    if not told:
        return None
    covered = ", ".join(f"{count:,.10g} {unit}" for unit, count in told["covered"].items())
    known = {name: figure["value"] for name, figure in told["figures"].items() if figure["value"] is not None}
    own = ", ".join(f"{value:.5g} {_words(name)}" for name, value in known.items())
    return f"the scored tokens cover {covered}; the reference's: {own or 'no number'}"


def _words(name: str) -> str:
    return name.replace("_", " ") if name.startswith("bits") else f"per {name.removeprefix('ppl_')}"
