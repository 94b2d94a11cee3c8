"""The MIL evaluator's operators on shapes, indices and matrices against PyTorch."""

import numpy as np
import pytest
import torch
from mil_programs import answers, expected, random
from torch.nn import functional

X, M, N = random(2, 3, 4), random(2, 4, 5, seed=1), random(2, 3, 5, seed=2)
PLACES, ALONG = np.array([[2, 0], [1, 1]], np.int32), np.array([[[0, 2, 1, 1]], [[2, 2, 0, 1]]], np.int32)
Q, K, V = random(1, 2, 3, 8, seed=3), random(1, 2, 5, 8, seed=4), random(1, 2, 5, 6, seed=5)
IMAGE = random(2, 4, 6, 5, seed=6)
INPUTS = {"x": X, "m": M, "n": N, "i": PLACES, "j": ALONG, "q": Q, "k": K, "v": V, "image": IMAGE}
W, BIAS = random(7, 4, seed=7), random(7, seed=8)
KERNEL, LINE = random(6, 2, 3, 2, seed=9), random(5, 3, 2, seed=10)
GAMMA, BETA = random(3, 4, seed=11), random(3, 4, seed=12)
MASK = np.where(random(3, 5, seed=13) > 1, np.float32(-30000), np.float32(0))
KEPT = np.arange(15).reshape(3, 5) % 4 != 0


def _with_rest(mb, size):
    return mb.concat(values=[size, np.array([-1], np.int32)], axis=0)


CASES = {
    "identity": (lambda mb, x, **_: mb.identity(x=x), lambda t: t["x"]),
    "reshape": (lambda mb, x, **_: mb.reshape(x=x, shape=[4, -1]), lambda t: t["x"].reshape(4, -1)),
    "reshape_inherits": (lambda mb, x, **_: mb.reshape(x=x, shape=[0, 4, -1]), lambda t: t["x"].reshape(2, 4, 3)),
    "reshape_computed": (
        lambda mb, x, m, **_: mb.reshape(x=x, shape=_with_rest(mb, mb.gather(x=mb.shape(x=m), indices=[1]))),
        lambda t: t["x"].reshape(4, -1),
    ),
    "reshape_like": (
        lambda mb, x, m, n, **_: mb.reshape_like(
            x=x, ref_tensors=(m, n), begins=(1, 0), ends=(2, 2), end_masks=(False, False)
        ),
        lambda t: t["x"].reshape(4, 2, 3),
    ),
    "transpose": (lambda mb, x, **_: mb.transpose(x=x, perm=[2, 0, 1]), lambda t: t["x"].permute(2, 0, 1)),
    "expand_dims": (lambda mb, x, **_: mb.expand_dims(x=x, axes=[1, -1]), lambda t: t["x"][:, None, ..., None]),
    "squeeze": (lambda mb, q, **_: mb.squeeze(x=q, axes=[0]), lambda t: t["q"][0]),
    "squeeze_all": (lambda mb, q, **_: mb.squeeze(x=q), lambda t: t["q"].squeeze()),
    "flatten2d": (lambda mb, x, **_: mb.flatten2d(x=x, axis=2), lambda t: t["x"].reshape(6, 4)),
    "shape": (lambda mb, x, **_: mb.shape(x=x), lambda t: torch.tensor(t["x"].shape)),
    "concat": (
        lambda mb, x, n, **_: mb.concat(values=[x, n, x], axis=-1),
        lambda t: torch.cat([t["x"], t["n"], t["x"]], -1),
    ),
    "concat_scalars": (
        lambda mb, x, **_: mb.concat(values=[mb.gather(x=mb.shape(x=x), indices=1), 7], axis=0),
        lambda t: torch.tensor([3, 7]),
    ),
    "concat_interleaved": (
        lambda mb, x, **_: mb.concat(values=[x, mb.add(x=x, y=1.0)], axis=1, interleave=True),
        lambda t: torch.stack([t["x"], t["x"] + 1], 2).reshape(2, 6, 4),
    ),
    "split": (lambda mb, x, **_: mb.split(x=x, num_splits=2, axis=2)[1], lambda t: t["x"][..., 2:]),
    "split_sizes": (lambda mb, x, **_: mb.split(x=x, split_sizes=[1, 2], axis=1)[1], lambda t: t["x"][:, 1:]),
    "stack": (lambda mb, x, **_: mb.stack(values=[x, x], axis=1), lambda t: torch.stack([t["x"]] * 2, 1)),
    "tile": (lambda mb, x, **_: mb.tile(x=x, reps=[1, 2, 3]), lambda t: t["x"].repeat(1, 2, 3)),
    "reverse": (lambda mb, x, **_: mb.reverse(x=x, axes=[0, 2]), lambda t: t["x"].flip(0, 2)),
    "fill": (lambda mb, **_: mb.fill(shape=[2, 3], value=1.5), lambda t: torch.full((2, 3), 1.5)),
    "fill_like": (lambda mb, x, **_: mb.fill_like(ref_tensor=x, value=2.0), lambda t: torch.full_like(t["x"], 2)),
    "range_1d": (
        lambda mb, x, **_: mb.range_1d(start=1, end=mb.reduce_sum(x=mb.shape(x=x)), step=3),
        lambda t: torch.arange(1, 9, 3),
    ),
    "one_hot": (
        lambda mb, i, **_: mb.one_hot(indices=i, one_hot_vector_size=4, axis=1, on_value=2.0, off_value=-1.0),
        lambda t: functional.one_hot(t["i"].long(), 4).movedim(-1, 1) * 3 - 1,
    ),
    "band_part": (lambda mb, x, **_: mb.band_part(x=x, lower=0, upper=1), lambda t: t["x"].triu().tril(1)),
    "band_part_lower": (lambda mb, x, **_: mb.band_part(x=x, lower=-1, upper=0), lambda t: t["x"].tril()),
    "pad": (
        lambda mb, x, **_: mb.pad(x=x, pad=[1, 0, 2, 1], constant_val=0.5),
        lambda t: functional.pad(t["x"], (2, 1, 1, 0), value=0.5),
    ),
    "pad_reflect": (
        lambda mb, x, **_: mb.pad(x=x, pad=[0, 0, 2, 1], mode="reflect"),
        lambda t: functional.pad(t["x"], (2, 1), mode="reflect"),
    ),
    "pad_replicate": (
        lambda mb, x, **_: mb.pad(x=x, pad=[0, 0, 2, 1], mode="replicate"),
        lambda t: functional.pad(t["x"], (2, 1), mode="replicate"),
    ),
    "sliding_windows": (lambda mb, x, **_: mb.sliding_windows(x=x, axis=2, size=2), lambda t: t["x"].unfold(2, 2, 1)),
    "slice": (
        lambda mb, x, **_: mb.slice_by_index(
            x=x,
            begin=[1, -2, 0],
            end=[0, 0, 4],
            stride=[1, 1, 2],
            end_mask=[True, True, False],
            squeeze_mask=[True, False, False],
        ),
        lambda t: t["x"][1, -2:, 0:4:2],
    ),
    "slice_back": (
        lambda mb, x, **_: mb.slice_by_index(
            x=x, begin=[0, 0, 0], end=[0, 0, 0], stride=[1, 1, -1], begin_mask=[True] * 3, end_mask=[True] * 3
        ),
        lambda t: t["x"].flip(2),
    ),
    "slice_by_size": (
        lambda mb, x, **_: mb.slice_by_size(x=x, begin=[0, 1, 1], size=[-1, 2, 2]),
        lambda t: t["x"][:, 1:3, 1:3],
    ),
    "slice_update": (
        lambda mb, x, **_: mb.slice_update(
            x=x, update=np.ones((2, 1, 2), np.float32), begin=[0, 1, 0], end=[2, 2, 4], stride=[1, 1, 2]
        ),
        lambda t: t["x"].index_put(
            (torch.tensor([[0], [1]]), torch.tensor(1), torch.tensor([0, 2])), torch.tensor(1.0)
        ),
    ),
    "gather": (lambda mb, x, i, **_: mb.gather(x=x, indices=i, axis=1), lambda t: t["x"][:, t["i"]]),
    "gather_scalar": (lambda mb, x, **_: mb.gather(x=x, indices=2, axis=-1), lambda t: t["x"][..., 2]),
    "gather_batched": (
        lambda mb, x, i, **_: mb.gather(x=x, indices=i, axis=1, batch_dims=1),
        lambda t: torch.stack([t["x"][b, t["i"][b]] for b in range(2)]),
    ),
    "gather_along_axis": (
        lambda mb, x, j, **_: mb.gather_along_axis(x=x, indices=j, axis=1),
        lambda t: torch.gather(t["x"], 1, t["j"].long()),
    ),
    "gather_nd": (
        lambda mb, x, i, **_: mb.gather_nd(x=x, indices=mb.minimum(x=i, y=1)),
        lambda t: t["x"][[1, 1], [0, 1]],
    ),
    "scatter": (
        lambda mb, x, **_: mb.scatter(
            data=x, indices=[2, 0], updates=np.ones((2, 2, 4), np.float32), axis=1, mode="update"
        ),
        lambda t: t["x"].index_fill(1, torch.tensor([2, 0]), 1),
    ),
    "scatter_along_axis": (
        lambda mb, x, j, **_: mb.scatter_along_axis(
            data=x, indices=j, updates=np.ones((2, 1, 4), np.float32), axis=1, mode="add"
        ),
        lambda t: t["x"].scatter_add(1, t["j"].long(), torch.ones(2, 1, 4)),
    ),
    "scatter_nd": (
        lambda mb, x, **_: mb.scatter_nd(
            data=x, indices=np.array([[0, 1], [0, 1]], np.int32), updates=np.ones((2, 4), np.float32), mode="add"
        ),
        lambda t: t["x"].index_put((torch.tensor([0]), torch.tensor([1])), torch.tensor(2.0), accumulate=True),
    ),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return answers(CASES, INPUTS, tmp_path_factory.mktemp("shapes"))


@pytest.mark.parametrize("name", CASES)
def test_operator_is_pytorchs(name, results):
    wanted = expected(CASES[name], INPUTS)
    assert results[name].shape == wanted.shape
    np.testing.assert_allclose(results[name], wanted, rtol=2e-5, atol=2e-6)
