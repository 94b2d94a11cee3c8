"""llama.cpp's quantizer: a float GGUF file in, one of another type out."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import BuildError, JobError
from exporter.runner import Floats
from exporter.targets.gguf import log
from exporter.targets.gguf.header import read_header
from exporter.targets.gguf.types import FILE_TYPES, TENSOR_TYPES


def quantize(
    source: Path,
    destination: Path,
    precision: str,
    matrix: Mapping[str, Floats],
    overrides: Sequence[tuple[str, str]],
    threads: int,
) -> None:
    """Quantizes `source` (float16) to `precision`.

    `matrix`: the importance of each input column, float32 [columns], by the tensors' names in the file; empty for none.
    `overrides`: (regular expression, type) pairs; the first that is found in a tensor's name gives its type.
    Raises BuildError with llama.cpp's own reason, and JobError for a pattern that is found in no name.
    """
    import llama_cpp

    _refuse_unmatched(source, overrides)
    log.listen()
    log.forget()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = threads
    parameters.ftype = FILE_TYPES[precision]
    # llama.cpp reads both lists up to an entry without a name; the arrays must outlive the call.
    columns = {name: np.ascontiguousarray(values, np.float32) for name, values in matrix.items()}
    if columns:
        entries = (llama_cpp.llama_model_imatrix_data * (len(columns) + 1))()
        for entry, (name, values) in zip(entries, columns.items(), strict=False):
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        parameters.imatrix = _first(entries)
    if overrides:
        patterns = (llama_cpp.llama_model_tensor_override * (len(overrides) + 1))()
        for place, (pattern, kind) in zip(patterns, overrides, strict=False):
            place.pattern, place.type = pattern.encode(), TENSOR_TYPES[kind]
        parameters.tt_overrides = _first(patterns)
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(destination).encode(), ctypes.byref(parameters))
    if status != 0:
        raise BuildError(f"llama.cpp cannot quantize to {precision}: {log.last_errors()}")


def _first(array: Any) -> Any:
    return ctypes.cast(array, ctypes.POINTER(array._type_))


def _refuse_unmatched(source: Path, overrides: Sequence[tuple[str, str]]) -> None:
    if not overrides:
        return
    names = [tensor.name for tensor in read_header(source).tensors]
    for pattern, kind in overrides:
        if not any(re.search(pattern, name) for name in names):
            some = sorted({re.sub(r"\d+", "N", name) for name in names if name.endswith(".weight")})
            raise JobError(f"--gguf-tensor {pattern}={kind} fits no tensor; there are: {', '.join(some)}")
