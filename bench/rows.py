"""How a row of a report is read: the one place here that knows report.json's groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]


def figure(row: Any, path: str) -> Any:
    """What stands at a path such as quality.ppl_ratio.value; None where it, or a group around it, was not measured."""
    for name in path.split("."):
        if not isinstance(row, Mapping):
            return None
        row = row.get(name)
    return row


def variant(row: Row) -> str:
    return f"{row['target']}:{row['precision']}"


def verdict(row: Row) -> str:
    """the reference, passed or failed; a row that has no figures has its status. Only the reference has no gates.

    A row that was taken over from a page brings the page's word, if it had one, for the gates are not on it.
    """
    if "verdict" in row:
        return row["verdict"] or ""
    if row["status"] != "ok":
        return str(row["status"])
    if not row["gates"]:
        return "the reference"
    return "passed" if all(gate["passed"] for gate in row["gates"]) else "failed"
