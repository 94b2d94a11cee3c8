"""MIL's products: matmul, linear, conv, einsum, attention. NumPy's BLAS multiplies, in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from exporter.targets.coreml.mil.blob import Array
from exporter.targets.coreml.mil.shapes import ints
from exporter.targets.coreml.mil.threads import spread

Operator = Callable[..., Any]

_ROWS = 128  # of queries at a time


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """[…, in] and [out, in] to […, out]."""
    rows = x.reshape(-1, x.shape[-1])  # one product, whatever the batch
    found = rows @ weight.T
    if bias is not None:
        found += bias
    return found.reshape(*x.shape[:-1], weight.shape[0])


def matmul(x: Array, y: Array, transpose_x: Any = False, transpose_y: Any = False) -> Any:
    left = np.swapaxes(x, -1, -2) if transpose_x else x
    right = np.swapaxes(y, -1, -2) if transpose_y else y
    if right.ndim == 2 and left.ndim > 2:
        return (left.reshape(-1, left.shape[-1]) @ right).reshape(*left.shape[:-1], right.shape[-1])
    return np.matmul(left, right)


def einsum(values: Sequence[Array], equation: str) -> Array:
    found: Array = np.einsum(equation, *values, optimize=True)
    return found


def scaled_dot_product_attention(query: Array, key: Array, value: Array, attn_mask: Array | None = None) -> Array:
    """[…, L, E], […, S, E], […, S, EV] and a mask that broadcasts to […, L, S], boolean or added: […, L, EV].

    Some rows of a head at a time: their scores stay in the processor's cache.
    """
    outer, rows = query.shape[:-2], query.shape[-2]
    scale = np.float32(1 / np.sqrt(query.shape[-1]))
    mask = attn_mask
    if mask is not None and mask.dtype == bool:
        mask = np.where(mask, np.float32(0), np.float32(-np.inf))
    blocks = [slice(begin, min(begin + _ROWS, rows)) for begin in range(0, rows, _ROWS)]
    seen = [_seen(mask, block, key.shape[-2]) for block in blocks]
    if mask is not None:
        mask = np.broadcast_to(mask, (*outer, rows, key.shape[-2]))
    found = np.empty((*outer, rows, value.shape[-1]), np.float32)

    def attend(task: tuple[tuple[int, ...], int]) -> None:
        head, at = task
        block, columns = blocks[at], seen[at]
        scores = (query[head][block] * scale) @ key[head][columns].T
        if mask is not None:
            scores += mask[head][block, columns]
        scores -= np.max(scores, axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        np.matmul(scores, value[head][columns], out=found[head][block])
        found[head][block] /= np.sum(scores, axis=-1, keepdims=True)  # softmax's divisor, of fewer numbers

    spread(attend, [(head, at) for head in np.ndindex(*outer) for at in range(len(blocks))])
    return found


def _seen(mask: Array | None, block: slice, columns: int) -> slice:
    """The columns that a row of the block sees. What a mask below -10000 hides is 0 after softmax, in float32 too."""
    if mask is None or mask.size != mask.shape[-1] * mask.shape[-2] or mask.shape[-2] < block.stop:
        return slice(0, columns)
    visible = mask.reshape(mask.shape[-2:])[block] > -1e4
    if not visible.any(axis=1).all():  # a row that sees nothing is the mean of all
        return slice(0, columns)
    [some] = np.nonzero(visible.any(axis=0))
    return slice(int(some[0]), int(some[-1]) + 1)


def conv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    strides: Any = None,
    pad_type: str = "valid",
    pad: Any = None,
    dilations: Any = None,
    groups: Any = 1,
) -> Array:
    """[N, C_in, *D] and [C_out, C_in / groups, *K] to [N, C_out, *D']; `pad` has before and after of each dimension."""
    rank = x.ndim - 2
    steps = [1] * rank if strides is None else ints(strides)
    spread = [1] * rank if dilations is None else ints(dilations)
    spans = [(size - 1) * by + 1 for size, by in zip(weight.shape[2:], spread, strict=True)]
    before_after = padding(pad_type, pad, x.shape[2:], spans, steps)
    padded = np.pad(x, [(0, 0), (0, 0), *before_after])
    axes = tuple(range(2, 2 + rank))
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axes)
    kept = windows[(slice(None), slice(None), *(slice(None, None, by) for by in (*steps, *spread)))]
    count = int(groups)
    if count == len(weight) == x.shape[1]:  # each channel by itself: a product for each place of the kernel
        found = np.zeros(kept.shape[: 2 + rank], np.float32)
        for tap in np.ndindex(*weight.shape[2:]):
            found += kept[(..., *tap)] * np.reshape(weight[(slice(None), 0, *tap)], (-1, *[1] * rank))
        return found if bias is None else found + np.reshape(bias, (-1, *[1] * rank))
    outputs = []
    for part, kernel in zip(np.split(kept, count, axis=1), np.split(weight, count, axis=0), strict=True):
        summed = [1, *range(2 + rank, 2 + 2 * rank)]  # the channels, and each window's own dimensions
        outputs.append(np.tensordot(part, kernel, (summed, list(range(1, 2 + rank)))))  # [N, *D', C_out / groups]
    found = np.moveaxis(np.concatenate(outputs, axis=-1), -1, 1)
    return found if bias is None else found + np.reshape(bias, (-1, *[1] * rank))


def padding(kind: str, pad: Any, sizes: Sequence[int], spans: list[int], steps: list[int]) -> list[tuple[int, int]]:
    """Before and after each dimension, of windows that span so much and step so far."""
    if kind == "custom":
        return [(int(before), int(after)) for before, after in np.reshape(ints(pad), (-1, 2))]
    if kind == "valid":
        return [(0, 0)] * len(spans)
    found = []
    for size, span, step in zip(sizes, spans, steps, strict=True):  # as many outputs as steps fit, rounded up
        whole = max((-(-size // step) - 1) * step + span - size, 0)
        more, less = -(-whole // 2), whole // 2
        found.append((more, less) if kind == "same_lower" else (less, more))
    return found


PRODUCTS: dict[str, Operator] = {
    "conv": conv,
    "einsum": einsum,
    "linear": linear,
    "matmul": matmul,
    "scaled_dot_product_attention": scaled_dot_product_attention,
}
