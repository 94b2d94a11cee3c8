"""MIL's compressed constants, expanded; and the operators that quantize activations.

Names are shared by iOS 16's operators, whose indices and masks are packed into bytes, and iOS 18's, whose types are
narrower than a byte.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from exporter.targets.coreml.mil.blob import Array, numbers
from exporter.targets.coreml.mil.shapes import ints

Operator = Callable[..., Any]

_PACKED_INDICES = {2: "uint1", 4: "uint2", 16: "uint4", 64: "uint6", 256: "uint8"}  # by the palette's size


def constexpr_affine_dequantize(quantized_data: Array, zero_point: Any, scale: Any, axis: Any) -> Array:
    return _dequantized(quantized_data, zero_point, scale, axis)


def constexpr_blockwise_shift_scale(data: Array, scale: Array, offset: Array | None = None) -> Array:
    """Each block of `data` has a scale, and an offset that is subtracted first; scale.shape counts the blocks."""
    blocks: list[int] = []  # each dimension as its blocks, and their length
    for size, count in zip(data.shape, scale.shape, strict=True):
        blocks += [count, size // count]
    ones = [size for count in scale.shape for size in (count, 1)]
    found = data.astype(np.float32).reshape(blocks)
    if offset is not None:
        found -= offset.astype(np.float32).reshape(ones)
    found *= scale.astype(np.float32).reshape(ones)
    return found.reshape(data.shape)


def constexpr_lut_to_dense(indices: Array, lut: Array, shape: Any = None, vector_axis: Any = None) -> Array:
    """Each index becomes the number, or the vector of numbers, of its group's palette.

    iOS 16: packed bytes, one palette [N] and `shape`. iOS 18: `lut` is [*groups, N, vector].
    """
    if shape is not None:
        sizes = ints(shape)
        unpacked = numbers(indices, _PACKED_INDICES[lut.size], int(np.prod(sizes)))
        return np.take(lut, unpacked).reshape(sizes)
    groups, vector = lut.shape[:-2], lut.shape[-1]
    spans = [size // count for size, count in zip(indices.shape, groups, strict=True)]
    found = np.empty((*indices.shape, vector), lut.dtype)
    for group in np.ndindex(*groups):
        block = tuple(slice(at * span, (at + 1) * span) for at, span in zip(group, spans, strict=True))
        found[block] = np.take(lut[group], indices[block], axis=0)
    if vector == 1:
        return found[..., 0]
    axis = int(vector_axis) % indices.ndim
    sizes = list(indices.shape)
    sizes[axis] *= vector
    return np.moveaxis(found, -1, axis + 1).reshape(sizes)


def constexpr_sparse_to_dense(nonzero_data: Array, mask: Array, shape: Any = None) -> Array:
    """iOS 16: the mask's bits are packed, and `shape` given. iOS 18: the mask has the shape."""
    if shape is not None:
        sizes = ints(shape)
        mask = numbers(mask, "uint1", int(np.prod(sizes))).reshape(sizes)
    found = np.zeros(mask.shape, nonzero_data.dtype)
    found[mask != 0] = nonzero_data
    return found


def constexpr_lut_to_sparse(
    indices_mask: Array, indices_nonzero_data: Array, lut: Array, vector_axis: Any = None
) -> tuple[Array, Array]:
    """The mask, and the numbers that are not zero."""
    indices = constexpr_sparse_to_dense(indices_nonzero_data, indices_mask)
    dense = constexpr_lut_to_dense(indices, lut, vector_axis=vector_axis)
    mask = indices_mask if lut.shape[-1] == 1 else np.repeat(indices_mask, lut.shape[-1], axis=int(vector_axis))
    return mask, dense[mask != 0]


def constexpr_sparse_blockwise_shift_scale(
    data_mask: Array, nonzero_data: Array, scale: Array, offset: Array | None = None
) -> tuple[Array, Array]:
    """The mask, and the numbers that are not zero."""
    dense = constexpr_blockwise_shift_scale(constexpr_sparse_to_dense(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask != 0]


def quantize(x: Array, scale: Any, output_dtype: str, zero_point: Any = None, axis: Any = None) -> Array:
    """Of its parameter `input`: clip(round(input / scale) + zero_point)."""
    limits = np.iinfo(output_dtype)
    found = np.rint(x / _along(scale, axis, x.ndim))
    if zero_point is not None:
        found += _along(zero_point, axis, x.ndim).astype(np.float32)
    return np.clip(found, limits.min, limits.max).astype(output_dtype)


def dequantize(x: Array, scale: Any, zero_point: Any = None, axis: Any = None) -> Array:
    """Of its parameter `input`: scale * (input - zero_point)."""
    return _dequantized(x, zero_point, scale, axis)


def _dequantized(data: Array, zero_point: Any, scale: Any, axis: Any) -> Array:
    found = data.astype(np.float32)
    if zero_point is not None:
        found -= _along(zero_point, axis, data.ndim).astype(np.float32)
    found *= _along(scale, axis, data.ndim)
    return found


def _along(parameter: Any, axis: Any, rank: int) -> Array:
    """A vector laid along the axis; a scalar as it is."""
    found: Array = np.asarray(parameter)
    if found.ndim == 0:
        return found
    shape = [1] * rank
    shape[int(axis)] = -1
    return found.reshape(shape)


COMPRESSION: dict[str, Operator] = {
    "constexpr_affine_dequantize": constexpr_affine_dequantize,
    "constexpr_blockwise_shift_scale": constexpr_blockwise_shift_scale,
    "constexpr_cast": lambda source_val, output_dtype: np.array(source_val),
    "constexpr_lut_to_dense": constexpr_lut_to_dense,
    "constexpr_lut_to_sparse": constexpr_lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": constexpr_sparse_blockwise_shift_scale,
    "constexpr_sparse_to_dense": constexpr_sparse_to_dense,
    "dequantize": dequantize,
    "quantize": quantize,
}
