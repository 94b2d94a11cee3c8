"""The MIL evaluator's operators against PyTorch over shapes and axes that hypothesis chooses."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from exporter.targets.coreml.mil.blob import numbers
from exporter.targets.coreml.mil.operators import OPERATORS
from exporter.targets.coreml.mil.rounding import round_to_half
from exporter.targets.coreml.mil.threads import set_threads

pytestmark = pytest.mark.quick
SEEDS = st.integers(0, 2**32 - 1)
SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4)


def run(name, **arguments):
    with np.errstate(all="ignore"):
        return OPERATORS[name].run(**arguments)


def same(found, wanted, atol=2e-6):
    wanted = np.asarray(wanted)
    assert np.shape(found) == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=atol)


@st.composite
def tensors(draw, shapes=SHAPES):
    return np.random.default_rng(draw(SEEDS)).normal(size=draw(shapes)).astype(np.float32)


@given(tensors(), st.data())
@settings(deadline=None)
def test_softmax_reductions_and_cumsum_along_any_axis(x, data):
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    t = torch.from_numpy(x)
    same(run("softmax", x=x, axis=axis), t.softmax(axis))
    same(run("cumsum", x=x, axis=axis), t.cumsum(axis))
    same(run("reduce_argmax", x=x, axis=axis), t.argmax(axis))
    axes = data.draw(st.lists(st.integers(0, x.ndim - 1), min_size=1, unique=True))
    keep = data.draw(st.booleans())
    same(run("reduce_mean", x=x, axes=axes, keep_dims=keep), t.mean(axes, keep))
    same(run("reduce_max", x=x, axes=axes, keep_dims=keep), t.amax(axes, keep))
    same(run("reduce_log_sum_exp", x=x, axes=axes, keep_dims=keep), t.logsumexp(axes, keep))


@given(tensors(), st.integers(1, 4))
@settings(deadline=None)
def test_layer_norm_over_the_last_dimensions(x, count):
    shape = x.shape[-count:]
    axes = list(range(-len(shape), 0))
    gamma = np.linspace(0.5, 2, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    wanted = functional.layer_norm(torch.from_numpy(x), shape, torch.from_numpy(gamma), torch.from_numpy(gamma), 1e-3)
    same(run("layer_norm", x=x, axes=axes, gamma=gamma, beta=gamma, epsilon=np.float32(1e-3)), wanted, 1e-5)


@given(tensors(), st.data())
@settings(deadline=None)
def test_slices_are_numpys_and_an_update_puts_back_what_a_slice_took(x, data):
    rank = x.ndim
    begin = [data.draw(st.integers(-n, n - 1)) for n in x.shape]
    end = [data.draw(st.integers(-n, n)) for n in x.shape]
    stride = [data.draw(st.integers(1, 3)) for _ in range(rank)]
    masks = [[data.draw(st.booleans()) for _ in range(rank)] for _ in range(2)]
    key = tuple(
        slice(None if masks[0][i] else begin[i], None if masks[1][i] else end[i], stride[i]) for i in range(rank)
    )
    given = {"begin": begin, "end": end, "stride": stride, "begin_mask": masks[0], "end_mask": masks[1]}
    taken = run("slice_by_index", x=x, **given)
    same(taken, x[key])
    before = x.copy()
    same(run("slice_update", x=x, update=taken, **given), x)
    changed = run("slice_update", x=x, update=taken + 1, **given)
    same(x, before)
    assert int((changed != x).sum()) == taken.size


@given(tensors(), st.data())
@settings(deadline=None)
def test_moves(x, data):
    t = torch.from_numpy(x)
    perm = data.draw(st.permutations(range(x.ndim)))
    same(run("transpose", x=x, perm=perm), t.permute(perm))
    reps = [data.draw(st.integers(1, 3)) for _ in x.shape]
    same(run("tile", x=x, reps=reps), t.repeat(reps))
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    same(run("concat", values=[x, x], axis=axis), torch.cat([t, t], axis))
    same(run("stack", values=[x, x], axis=axis), torch.stack([t, t], axis))
    sizes = [1, x.shape[axis] - 1] if x.shape[axis] > 1 else [1]
    for found, wanted in zip(run("split", x=x, split_sizes=sizes, axis=axis), t.split(sizes, axis), strict=True):
        same(found, wanted)
    same(run("reshape", x=x, shape=np.array([-1, x.shape[-1]])), t.reshape(-1, x.shape[-1]))
    pads = [data.draw(st.integers(0, 2)) for _ in range(2 * x.ndim)]
    wanted = functional.pad(t, [n for i in reversed(range(x.ndim)) for n in pads[2 * i : 2 * i + 2]])
    same(run("pad", x=x, pad=np.array(pads)), wanted)


@given(tensors(), SHAPES, SEEDS, st.data())
@settings(deadline=None)
def test_gathers(x, shape, seed, data):
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    rng = np.random.default_rng(seed)
    indices = rng.integers(-x.shape[axis], x.shape[axis], shape).astype(np.int32)
    same(run("gather", x=x, indices=indices, axis=axis), x.take(indices, axis))
    like = list(x.shape)
    like[axis] = 3
    along = rng.integers(0, x.shape[axis], like)
    same(
        run("gather_along_axis", x=x, indices=along, axis=axis),
        torch.from_numpy(x).gather(axis, torch.from_numpy(along)),
    )


@given(st.lists(st.integers(1, 3), max_size=2), st.tuples(*[st.integers(1, 6)] * 4), SEEDS)
@settings(deadline=None)
def test_products_over_any_batch(outer, sizes, seed):
    rng = np.random.default_rng(seed)
    length, past, size, columns = sizes
    left, key, value = (
        rng.normal(size=(*outer, *last)).astype(np.float32) for last in ((length, size), (past, size), (past, columns))
    )
    q, k, v = (torch.from_numpy(array) for array in (left, key, value))
    same(run("matmul", x=left, y=key, transpose_y=True), q @ k.mT, 1e-5)
    same(run("linear", x=left, weight=key.reshape(-1, size)[:2]), q @ k.reshape(-1, size)[:2].T, 1e-5)
    mask = np.where(rng.random((length, past)) < 0.3, -30000, 0).astype(np.float32)
    wanted = functional.scaled_dot_product_attention(q, k, v, torch.from_numpy(mask))
    same(run("scaled_dot_product_attention", query=left, key=key, value=value, attn_mask=mask), wanted, 1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_attention_of_many_rows_on_any_threads(threads):
    """Blocks of rows see a part of the columns; a row that sees none is the mean of all."""
    query, key, value = np.random.default_rng(0).normal(size=(3, 1, 3, 300, 8)).astype(np.float32)
    behind = np.arange(300)[:, None] - np.arange(300)
    set_threads(threads)
    try:
        for kept in (behind >= 0, (behind >= 0) & (behind < 40), behind > 0):
            mask = np.where(kept, 0, -30000).astype(np.float32)
            wanted = functional.scaled_dot_product_attention(*map(torch.from_numpy, (query, key, value, mask)))
            same(run("scaled_dot_product_attention", query=query, key=key, value=value, attn_mask=mask), wanted, 1e-5)
        x = np.random.default_rng(1).normal(size=(3, 100000)).astype(np.float32) * 30000
        with np.errstate(all="ignore"):
            rounded = x.astype(np.float16)
            round_to_half(x)
        np.testing.assert_array_equal(x, rounded)
    finally:
        set_threads(1)


@given(st.tuples(*[st.integers(1, 3)] * 4), st.integers(1, 2), st.integers(1, 3), st.integers(1, 2), SEEDS)
@settings(deadline=None)
def test_conv_of_any_stride_dilation_and_groups(sizes, groups, stride, dilation, seed):
    batch, inputs, outputs, span = sizes
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, inputs * groups, 9, 8)).astype(np.float32)
    weight = rng.normal(size=(outputs * groups, inputs, span, 2)).astype(np.float32)
    found = run(
        "conv", x=x, weight=weight, strides=[stride, 1], dilations=[1, dilation], groups=groups, pad_type="custom",
        pad=[1, 1, 2, 2],
    )  # fmt: skip
    wanted = functional.conv2d(
        torch.from_numpy(x), torch.from_numpy(weight), None, (stride, 1), (1, 2), (1, dilation), groups
    )
    same(found, wanted, 1e-5)


@given(st.sampled_from([1, 2, 3, 4, 6]), st.integers(1, 50), SEEDS)
def test_packed_integers_are_unpacked(bits, count, seed):
    values = np.random.default_rng(seed).integers(0, 2**bits, count, dtype=np.uint8)
    rows = np.unpackbits(values[:, None], axis=1, bitorder="little")[:, :bits]
    data = np.packbits(rows.reshape(-1), bitorder="little")
    same(numbers(data, f"uint{bits}", count), values)
    if bits == 4:
        same(numbers(data, "int4", count), np.where(values > 7, values.astype(int) - 16, values))


@given(SEEDS, st.sampled_from([70, 1000, 70000]))
@settings(deadline=None, max_examples=20)
def test_rounding_is_float16s(seed, count):
    bits = np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint32)
    for x in (bits.view(np.float32), np.ldexp(bits / 2.0**32 - 0.5, seed % 60 - 40).astype(np.float32)):
        with np.errstate(all="ignore"):
            wanted = x.astype(np.float16).astype(np.float32)
            found = x.copy()
            round_to_half(found)
        np.testing.assert_array_equal(found, wanted)
