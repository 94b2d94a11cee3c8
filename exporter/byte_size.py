"""Sizes as users write them: 4G."""

from __future__ import annotations

import re

from exporter.errors import JobError

_SIZE = re.compile(r"^([1-9][0-9]*)(K|M|G)?$")


def parse_bytes(flag: str, text: str) -> int:
    """Bytes of a number with K, M or G (powers of 1000). Raises JobError, which names the flag."""
    found = _SIZE.match(text)
    if not found:
        raise JobError(f"{flag} {text!r}: give a number of bytes, or one with K, M or G, such as 4G")
    return int(found[1]) * {None: 1, "K": 10**3, "M": 10**6, "G": 10**9}[found[2]]
