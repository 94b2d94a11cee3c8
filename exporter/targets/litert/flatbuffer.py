"""A .tflite file as objects of its schema, read without a copy of its buffers, and written again.

https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs: buffers lie in the flatbuffer, or
behind it at an offset that it names, as written here and by ai-edge-quantizer. What several tensors have in common,
such as the scales of a weight that each signature reads, is one table that all of them point to.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from exporter.errors import BuildError

LIMIT = 2**31 - 1  # bytes: offsets inside a flatbuffer are of 32 bits, and the schema of TensorFlow Lite keeps to them
_ALIGNED = 16
_IDENTIFIER = b"TFL3"


@cache
def schema() -> Any:
    """The schema's classes, which ai-edge-litert brings."""
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


@cache
def _names(enumeration: str) -> Mapping[int, str]:
    found = vars(getattr(schema(), enumeration))
    return {value: name for name, value in found.items() if isinstance(value, int)}


def read_model(path: Path) -> Any:
    """A ModelT whose buffers are views of the file. Raises BuildError for what is no .tflite file, or is cut off."""
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8 or start[4:] != _IDENTIFIER:
            raise BuildError(f"{path} is no .tflite file: its identifier is not {_IDENTIFIER.decode()}")
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        model = schema().ModelT.InitFromObj(schema().Model.GetRootAs(whole, 0))
        for buffer in model.buffers or ():
            if buffer.offset > 1:
                buffer.data = np.frombuffer(whole, np.uint8, buffer.size, buffer.offset)
    except Exception as error:  # whatever the reader stumbles over in a damaged file
        raise BuildError(f"{path} cannot be read, it is damaged: {type(error).__name__}: {error}") from error
    return model


def write_model(model: Any, path: Path) -> None:
    """Writes a ModelT, its large buffers behind the flatbuffer. Raises BuildError for one that is too large."""
    import flatbuffers

    outside = {
        index: np.asarray(buffer.data, np.uint8).reshape(-1)
        for index, buffer in enumerate(model.buffers)
        if buffer.data is not None and len(buffer.data) > _ALIGNED
    }
    for tensor in (tensor for graph in model.subgraphs for tensor in graph.tensors):
        if isinstance(tensor.quantization, schema().QuantizationParametersT):
            tensor.quantization = _Once.of(tensor.quantization)

    def packed(begin: int) -> bytes:
        at = begin
        for index, data in outside.items():
            buffer = model.buffers[index]
            buffer.data, buffer.offset, buffer.size = None, at, len(data)
            at = _rounded_up(at + len(data))
        builder = flatbuffers.Builder(1 << 20)
        _Once.known.clear()
        builder.Finish(model.Pack(builder), _IDENTIFIER)
        return bytes(builder.Output())

    begin = _rounded_up(len(packed(_ALIGNED)))
    head = packed(begin)
    size = begin + sum(_rounded_up(len(data)) for data in outside.values())
    if size > LIMIT:
        raise BuildError(f"the file would be of {size:,} bytes; a .tflite file has {LIMIT:,} at most")
    with path.open("wb") as file:
        file.write(head.ljust(begin, b"\0"))
        for data in outside.values():
            file.write(data.tobytes())
            file.write(b"\0" * (_rounded_up(len(data)) - len(data)))
    for index, data in outside.items():
        model.buffers[index].data = data


class _Once:
    """A table of quantization parameters that is written once for all the tensors that have the same."""

    known: ClassVar[dict[tuple[Any, ...], int]] = {}

    def __init__(self, table: Any, key: tuple[Any, ...]) -> None:
        self._table, self._key = table, key

    @classmethod
    def of(cls, table: Any) -> Any:
        if table.details is not None:  # of blocks: it names a tensor of its own subgraph
            return table
        parts = (table.scale, table.zeroPoint, table.min, table.max)
        key = tuple(None if part is None else np.asarray(part).tobytes() for part in parts)
        return cls(table, (*key, table.quantizedDimension))

    def Pack(self, builder: Any) -> int:  # noqa: N802  # the name that the schema's classes call
        if self._key not in self.known:
            self.known[self._key] = self._table.Pack(builder)
        return self.known[self._key]


def _rounded_up(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def signatures(model: Any) -> Iterator[tuple[str, Any, Any]]:
    """Each signature's name, its definition and its subgraph."""
    for one in model.signatureDefs or ():
        yield one.signatureKey.decode(), one, model.subgraphs[one.subgraphIndex]


def operator(model: Any, op: Any) -> str:
    """Such as FULLY_CONNECTED; a custom operator by its own name."""
    code = model.operatorCodes[op.opcodeIndex]
    name = _names("BuiltinOperator")[max(code.builtinCode, code.deprecatedBuiltinCode)]
    return code.customCode.decode() if name == "CUSTOM" else name


def kind_of(tensor: Any) -> str:
    """Such as INT8."""
    return _names("TensorType")[tensor.type]


def bits_of(tensor: Any) -> int:
    """Of each of its numbers, as they are stored."""
    digits = "".join(one for one in kind_of(tensor) if one.isdigit())
    return int(digits) if digits else 8


def is_constant(model: Any, tensor: Any) -> bool:
    return model.buffers[tensor.buffer].data is not None


def floats_of(model: Any, tensor: Any) -> NDArray[np.float32] | None:
    """A constant of float32, a view of the file; None of anything else."""
    data = model.buffers[tensor.buffer].data
    if data is None or kind_of(tensor) != "FLOAT32":
        return None
    values: NDArray[np.float32] = np.asarray(data).view(np.float32).reshape(tuple(tensor.shape))
    return values
