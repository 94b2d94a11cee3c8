"""The MIL evaluator's operators that multiply and normalize against PyTorch."""

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
EACH = random(4, 1, 3, 2, seed=14)
GAMMA, BETA = random(3, 4, seed=11), random(3, 4, seed=12)
MASK = np.where(random(3, 5, seed=13) > 1, np.float32(-30000), np.float32(0))
KEPT = np.arange(15).reshape(3, 5) % 4 != 0

CASES = {
    "matmul": (lambda mb, x, m, **_: mb.matmul(x=x, y=m), lambda t: t["x"] @ t["m"]),
    "matmul_transposed": (
        lambda mb, x, n, **_: mb.matmul(x=x, y=n, transpose_x=True),
        lambda t: t["x"].mT @ t["n"],
    ),
    "matmul_right": (lambda mb, x, **_: mb.matmul(x=x, y=W, transpose_y=True), lambda t: t["x"] @ torch.tensor(W).T),
    "linear": (
        lambda mb, x, **_: mb.linear(x=x, weight=W, bias=BIAS),
        lambda t: functional.linear(t["x"], torch.tensor(W), torch.tensor(BIAS)),
    ),
    "linear_plain": (lambda mb, x, **_: mb.linear(x=x, weight=W), lambda t: t["x"] @ torch.tensor(W).T),
    "einsum": (
        lambda mb, image, **_: mb.einsum(
            values=[image, np.ones((2, 5, 6, 3), np.float32) / 2], equation="nchw,nwhu->nchu"
        ),
        lambda t: torch.einsum("nchw,nwhu->nchu", t["image"], torch.ones(2, 5, 6, 3) / 2),
    ),
    "softmax": (lambda mb, x, **_: mb.softmax(x=x, axis=1), lambda t: t["x"].softmax(1)),
    "layer_norm": (
        lambda mb, x, **_: mb.layer_norm(x=x, axes=[-2, -1], gamma=GAMMA, beta=BETA, epsilon=1e-3),
        lambda t: functional.layer_norm(t["x"], (3, 4), torch.tensor(GAMMA), torch.tensor(BETA), 1e-3),
    ),
    "layer_norm_last": (lambda mb, x, **_: mb.layer_norm(x=x, axes=[2]), lambda t: functional.layer_norm(t["x"], (4,))),
    "instance_norm": (
        lambda mb, image, **_: mb.instance_norm(x=image, gamma=W[0], beta=W[1]),
        lambda t: functional.instance_norm(t["image"], weight=torch.tensor(W[0]), bias=torch.tensor(W[1])),
    ),
    "batch_norm": (
        lambda mb, image, **_: mb.batch_norm(x=image, mean=W[0], variance=W[1] ** 2, gamma=W[2], beta=W[3]),
        lambda t: functional.batch_norm(t["image"], *(torch.tensor(w) for w in (W[0], W[1] ** 2, W[2], W[3]))),
    ),
    "l2_norm": (
        lambda mb, x, **_: mb.l2_norm(x=x, epsilon=1e-6),
        lambda t: t["x"] / (t["x"].square().sum() + 1e-6).sqrt(),
    ),
    "attention": (
        lambda mb, q, k, v, **_: mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=MASK),
        lambda t: functional.scaled_dot_product_attention(t["q"], t["k"], t["v"], torch.tensor(MASK)),
    ),
    "attention_boolean": (
        lambda mb, q, k, v, **_: mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=KEPT),
        lambda t: functional.scaled_dot_product_attention(t["q"], t["k"], t["v"], torch.tensor(KEPT)),
    ),
    "attention_unmasked": (
        lambda mb, q, k, v, **_: mb.scaled_dot_product_attention(query=q, key=k, value=v),
        lambda t: functional.scaled_dot_product_attention(t["q"], t["k"], t["v"]),
    ),
    "conv": (
        lambda mb, image, **_: mb.conv(
            x=image,
            weight=KERNEL,
            bias=W[:6, 0],
            strides=[2, 1],
            pad_type="custom",
            pad=[1, 2, 0, 1],
            dilations=[2, 1],
            groups=2,
        ),
        lambda t: functional.conv2d(
            functional.pad(t["image"], (0, 1, 1, 2)),
            torch.tensor(KERNEL),
            torch.tensor(W[:6, 0]),
            (2, 1),
            dilation=(2, 1),
            groups=2,
        ),
    ),
    "conv_of_each_channel": (
        lambda mb, image, **_: mb.conv(x=image, weight=EACH, bias=W[:4, 0], strides=[2, 1], groups=4),
        lambda t: functional.conv2d(t["image"], torch.tensor(EACH), torch.tensor(W[:4, 0]), (2, 1), groups=4),
    ),
    "max_pool": (
        lambda mb, image, **_: mb.max_pool(
            x=image, kernel_sizes=[3, 2], strides=[2, 2], pad_type="custom", pad=[1, 1, 0, 0]
        ),
        lambda t: functional.max_pool2d(t["image"], (3, 2), 2, (1, 0)),
    ),
    "max_pool_ceil": (
        lambda mb, image, **_: mb.max_pool(
            x=image, kernel_sizes=[3, 2], strides=[2, 2], pad_type="custom", pad=[0, 0, 0, 0], ceil_mode=True
        ),
        lambda t: functional.max_pool2d(t["image"], (3, 2), 2, ceil_mode=True),
    ),
    "avg_pool": (
        lambda mb, image, **_: mb.avg_pool(
            x=image, kernel_sizes=[3, 3], strides=[1, 2], pad_type="custom", pad=[1, 1, 1, 1]
        ),
        lambda t: functional.avg_pool2d(t["image"], 3, (1, 2), 1),
    ),
    "avg_pool_of_what_is_there": (
        lambda mb, image, **_: mb.avg_pool(
            x=image,
            kernel_sizes=[3, 3],
            strides=[1, 2],
            pad_type="custom",
            pad=[1, 1, 1, 1],
            exclude_padding_from_average=True,
        ),
        lambda t: functional.avg_pool2d(t["image"], 3, (1, 2), 1, count_include_pad=False),
    ),
    "conv_line": (
        lambda mb, x, **_: mb.conv(x=x, weight=LINE, pad_type="same"),
        lambda t: functional.conv1d(functional.pad(t["x"], (0, 1)), torch.tensor(LINE)),
    ),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return answers(CASES, INPUTS, tmp_path_factory.mktemp("products"))


@pytest.mark.parametrize("name", CASES)
def test_operator_is_pytorchs(name, results):
    wanted = expected(CASES[name], INPUTS)
    assert results[name].shape == wanted.shape
    np.testing.assert_allclose(results[name], wanted, rtol=2e-5, atol=2e-6)
