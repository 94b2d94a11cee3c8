"""The zeros in a written graph's layers, and whether 2:4 holds there: a tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exporter.targets.onnx_graph.held import Use, uses_of

if TYPE_CHECKING:
    import onnx

# Operators that multiply with codes, and where their zero points are; without any a code's middle, or 0, means 0.
_BLOCKED, _INTEGER, _DEQUANTIZE = "MatMulNBits", "MatMulInteger", "DequantizeLinear"
_ZERO_POINTS = {_BLOCKED: 3, _INTEGER: 3, _DEQUANTIZE: 2}
_DENSE = ("MatMul", "Gemm", "FusedMatMul", "MoE")


def zero_counts(model_onnx: Path) -> dict[str, int]:
    """How many numbers of each layer's matrix mean 0, by the names of held.weights_of; experts in codes are missing."""
    return {use.weight.name: int(used.size - np.count_nonzero(used)) for use, used in _layers(model_onnx)}


def two_of_four(model_onnx: Path) -> tuple[int, int]:
    """In how many layers' matrices 2:4 holds along their inputs, and of how many.

    Of each four neighbours along what a product sums over at most two are not 0, as sparse tensor cores take it.
    """
    held = [_holds(used, _summed_axis(use)) for use, used in _layers(model_onnx)]
    return sum(held), len(held)


def _layers(model_onnx: Path) -> Iterator[tuple[Use, NDArray[np.bool_]]]:
    """Each matrix but tables, and which of its numbers are not 0, in the shape it is stored in."""
    import onnx

    graph = onnx.load(model_onnx, load_external_data=False).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for use in uses_of(graph):
        if not use.weight.table and (used := _used(use, tensors, model_onnx.parent)) is not None:
            yield use, used


def _used(use: Use, tensors: Mapping[str, onnx.TensorProto], folder: Path) -> NDArray[np.bool_] | None:
    """None where the matrix is in codes that are not known here."""
    maker = next((one for one in (use.node, *use.behind) if one.op_type in _ZERO_POINTS), None)
    if maker is None:
        return _unlike(_read(use.tensor, folder), 0) if use.node.op_type in _DENSE else None
    place = _ZERO_POINTS[maker.op_type]
    name = maker.input[place] if place < len(maker.input) else ""
    if name and name not in tensors:
        return None
    points = _read(tensors[name], folder) if name else None
    codes = _read(use.tensor, folder)
    if maker.op_type == _BLOCKED:
        return _used_in_blocks(codes, points, {one.name: one.i for one in maker.attribute})
    if points is None or points.ndim == 0 or points.size == 1:
        return _unlike(codes, 0 if points is None else points.reshape(()))
    axis = next((one.i for one in maker.attribute if one.name == "axis"), 1) if maker.op_type == _DEQUANTIZE else -1
    if points.ndim == 1:
        points = np.expand_dims(points, [at for at in range(codes.ndim) if at != axis % codes.ndim])
    elif points.shape != codes.shape:  # in blocks along the axis
        points = np.repeat(points, codes.shape[axis] // points.shape[axis], axis)
    return _unlike(codes, points)


def _used_in_blocks(
    codes: NDArray[np.uint8], points: NDArray[Any] | None, attributes: Mapping[str, int]
) -> NDArray[np.bool_]:
    """[N, K] of MatMulNBits' codes [N, blocks, bytes]; its zero points [N, blocks] are packed as those are."""
    bits, rows, inputs = attributes.get("bits", 4), attributes["N"], attributes["K"]
    blocks = codes.shape[1]
    zero: Any = 1 << (bits - 1)
    if points is not None:
        packed = points.reshape(rows, -1)
        zero = _unpacked(packed, bits)[:, :blocks, None] if packed.dtype == np.uint8 else packed[:, :, None]
    return _unlike(_unpacked(codes, bits), zero).reshape(rows, -1)[:, :inputs]


def _unlike(codes: NDArray[Any], zero: Any) -> NDArray[np.bool_]:
    used: NDArray[np.bool_] = codes != zero
    return used


def _unpacked(data: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes along the last axis, of which the first lies in a byte's lowest bits."""
    parts = [(data >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, -1).reshape(*data.shape[:-1], -1)


def _summed_axis(use: Use) -> int:
    """The axis of the matrix, as _used gives it, that the product sums over."""
    if use.node.op_type == _BLOCKED:
        return -1
    flag = "transB" if use.place else "transA"
    across = any(one.name == flag and one.i for one in use.node.attribute)
    rows = (use.place == 1) != (across != use.turned)
    return -2 if rows else -1


def _holds(used: NDArray[np.bool_], axis: int) -> bool:
    """Whether 2:4 holds; most dense matrices are told by their first rows."""
    along = np.moveaxis(used, axis, -1)
    if along.shape[-1] % 4:
        return False
    fours = along.reshape(*along.shape[:-1], -1, 4)
    return bool((fours[:1].sum(-1) <= 2).all() and (fours.sum(-1) <= 2).all())


def _read(tensor: onnx.TensorProto, folder: Path) -> NDArray[Any]:
    from onnx import numpy_helper

    numbers: NDArray[Any] = numpy_helper.to_array(tensor, str(folder))
    return numbers
