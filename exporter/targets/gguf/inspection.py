"""What is in a GGUF file, as plain data, from its header: it has tensors and no operators; llama.cpp knows those."""

from __future__ import annotations

import math
import struct
from collections import Counter
from pathlib import Path
from typing import Any

from exporter.errors import BuildError
from exporter.targets.gguf.header import read_header


def inspect(path: Path) -> dict[str, Any]:
    """Bytes of the tensors by type, and the header's fields. Raises BuildError for what is no GGUF file."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        header = read_header(path)
    except (ValueError, struct.error) as error:  # struct's: it ends in the middle
        raise BuildError(f"{path} is no GGUF file, or not a whole one ({error})") from error
    sizes: Counter[str] = Counter()
    for tensor in header.tensors:
        kind = GGMLQuantizationType(tensor.kind)
        block, size = GGML_QUANT_SIZES[kind]
        sizes[kind.name.lower()] += math.prod(tensor.shape) // block * size
    return {"format": "gguf", "functions": [], "bytes": dict(sizes.most_common()), "metadata": dict(header.fields)}
