"""The number formats of a GGUF file: llama.cpp's names for them, what they need, and what a file really holds."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from exporter.errors import unknown
from exporter.targets.gguf.header import read_header
from exporter.types import Weight

# llama.h's enum llama_ftype and ggml.h's enum ggml_type: numbers that are written into files, and never change.
FILE_TYPES: Mapping[str, int] = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k_m": 12, "q4_k_s": 14,
    "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18, "iq2_xs": 20, "iq3_xxs": 23, "iq4_nl": 25, "iq4_xs": 30,
    "bf16": 32,
}  # fmt: skip
TENSOR_TYPES: Mapping[str, int] = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "q2_k": 10, "q3_k": 11, "q4_k": 12,
    "q5_k": 13, "q6_k": 14, "iq2_xxs": 16, "iq2_xs": 17, "iq3_xxs": 18, "iq1_s": 19, "iq4_nl": 20, "iq3_s": 21,
    "iq2_s": 22, "iq4_xs": 23, "iq1_m": 29, "bf16": 30,
}  # fmt: skip
_KINDS = {number: name.upper() for name, number in TENSOR_TYPES.items()}
FLOATS = ("f32", "f16", "bf16")
# What llama.cpp refuses to quantize without an importance matrix, and what its arithmetic makes no use of one for.
DEMAND_MATRIX = frozenset({"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs"})
IGNORE_MATRIX = frozenset({*FLOATS, "q8_0"})
_LAYERS = ("blk.", "enc.blk.", "dec.blk.")  # all else is embeddings and heads
_BLOCK = 256  # columns of a block of the K-quants and most IQ types; where a row is no multiple, another type is used
_SMALL_BLOCKS = frozenset({"q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", *FLOATS})


def parse_override(text: str) -> tuple[str, str]:
    """(pattern, type) of PATTERN=TYPE. Raises ValueError with the nearest types."""
    pattern, sign, kind = text.rpartition("=")
    if not sign or not pattern:
        raise ValueError("give PATTERN=TYPE, such as 'ffn_down=q6_k'")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error})") from error
    if kind.lower() not in TENSOR_TYPES:
        raise ValueError(unknown("tensor type", kind, TENSOR_TYPES))
    return pattern, kind.lower()


def parse_overrides(options: Iterable[str]) -> list[tuple[str, str]]:
    """(pattern, type) for each PATTERN=TYPE of --gguf-tensor."""
    return [parse_override(text) for text in options]


def demands_matrix(precision: str, overrides: Iterable[tuple[str, str]]) -> bool:
    """Whether llama.cpp refuses to quantize so without an importance matrix."""
    return precision in DEMAND_MATRIX or any(kind in DEMAND_MATRIX for _, kind in overrides)


def held_types(file: Path) -> tuple[Counter[str], Counter[str]]:
    """How many tensors of each type a file really holds; and of those, which are not what its name says.

    The second counts matrices whose rows are no multiple of 256 columns: where a block needs 256, llama.cpp falls back
    to a type with a smaller one, which is larger, or smaller, than what was asked for.
    """
    held: Counter[str] = Counter()
    fallen: Counter[str] = Counter()
    for tensor in read_header(file).tensors:
        kind = _KINDS.get(tensor.kind, f"type {tensor.kind}")
        held[kind] += 1
        if kind.lower() not in FLOATS and len(tensor.shape) > 1 and tensor.shape[0] % _BLOCK:
            fallen[kind] += 1
    return held, fallen


def weights_of(folder: Path, files: Sequence[str]) -> list[Weight]:
    """The matrices of an artifact's files with the bits of each, blocks' scales included, from the headers."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    found = []
    for file in files:
        for tensor in read_header(folder / file).tensors:
            if len(tensor.shape) > 1:
                block, size = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
                columns, name = tensor.shape[0], tensor.name
                why = f"rows of {columns} are no multiple of the block of {_BLOCK}" if columns % _BLOCK else ""
                bits, table = 8 * size / block, not name.startswith(_LAYERS)
                found.append(Weight(name, math.prod(tensor.shape), bits, table, why))
    return found


def describe_types(file: Path, precision: str) -> str:
    """A line for the report: the types that the file holds, and what fell back."""
    held, fallen = held_types(file)
    line = "holds " + ", ".join(f"{count} {kind}" for kind, count in held.most_common())
    if fallen and precision not in _SMALL_BLOCKS:
        kinds = ", ".join(f"{count} {kind}" for kind, count in fallen.most_common())
        line += f"; {kinds} in the place of {precision}'s own types, whose blocks of {_BLOCK} do not divide the rows"
    return line
