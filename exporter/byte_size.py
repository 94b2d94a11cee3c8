"""Sizes as users write them: 4G."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

_SIZE = re.compile(r"^([1-9][0-9]*)(K|M|G)?$")


def parse_bytes(value: Any) -> int:
    """Bytes of a number with K, M or G (powers of 1000). Raises ValueError."""
    found = None if isinstance(value, bool) else _SIZE.match(str(value))
    if not found:
        raise ValueError("give a number of bytes, or one with K, M or G, such as 4G")
    return int(found[1]) * {None: 1, "K": 10**3, "M": 10**6, "G": 10**9}[found[2]]


# The type of an option that takes a size; what holds it is the number of bytes.
ByteSize = Annotated[int, BeforeValidator(parse_bytes, json_schema_input_type=int | str)]
