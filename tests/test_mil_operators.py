"""The MIL evaluator's operators against PyTorch: each in a program of coremltools' builder, read from an .mlpackage."""

import numpy as np
import pytest
import torch
from mil_programs import answers, expected, random
from torch.nn import functional

X, Y, P = random(2, 3, 4), random(3, 4, seed=1), random(2, 3, 4, low=0.1, high=3, seed=2)
UNIT = random(2, 3, 4, low=-0.9, high=0.9, seed=3)
A, B = np.array([[5, -7, 4], [-9, 3, 8]], np.int32), np.array([2, 3, -4], np.int32)
IMAGE = random(1, 3, 4, 2, seed=4)
INPUTS = {"image": IMAGE, "x": X, "y": Y, "p": P, "u": UNIT, "a": A, "b": B}


def _channels(*values):
    return torch.tensor(values).float()[:, None, None]


def _unary(name, source, reference):
    return lambda mb, **v: getattr(mb, name)(x=v[source]), lambda t: reference(t[source])


def _binary(name, left, right, reference):
    return lambda mb, **v: getattr(mb, name)(x=v[left], y=v[right]), lambda t: reference(t[left], t[right])


UNARY = {
    "abs": torch.abs, "ceil": torch.ceil, "floor": torch.floor, "round": torch.round, "sign": torch.sign,
    "atan": torch.atan, "cos": torch.cos, "cosh": torch.cosh, "erf": torch.erf, "exp": torch.exp, "exp2": torch.exp2,
    "relu": torch.relu, "relu6": functional.relu6, "sigmoid": torch.sigmoid, "silu": functional.silu, "sin": torch.sin,
    "sinh": torch.sinh, "softplus": functional.softplus, "softsign": functional.softsign, "square": torch.square,
    "tan": torch.tan, "tanh": torch.tanh,
}  # fmt: skip
BINARY = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "maximum": torch.maximum, "minimum": torch.minimum,
    "equal": torch.eq, "not_equal": torch.ne, "greater": torch.gt, "greater_equal": torch.ge, "less": torch.lt,
    "less_equal": torch.le,
}  # fmt: skip
LOGICAL = {"logical_and": torch.logical_and, "logical_or": torch.logical_or, "logical_xor": torch.logical_xor}
REDUCED = {
    "reduce_sum": torch.sum, "reduce_mean": torch.mean, "reduce_max": torch.amax, "reduce_min": torch.amin,
    "reduce_log_sum_exp": torch.logsumexp,
}  # fmt: skip

CASES = {
    **{name: _unary(name, "x", reference) for name, reference in UNARY.items()},
    **{f"{n}_of_unit": _unary(n, "u", getattr(torch, f"arc{n[1:]}")) for n in ("acos", "asin", "atanh")},
    **{name: _unary(name, "p", getattr(torch, name)) for name in ("sqrt", "rsqrt", "log")},
    **{name: _binary(name, "x", "y", reference) for name, reference in BINARY.items()},
    "real_div": _binary("real_div", "x", "p", torch.div),
    "pow": _binary("pow", "p", "x", torch.pow),
    "pow_2": (lambda mb, x, **_: mb.pow(x=x, y=2.0), lambda t: t["x"] ** 2),
    "floor_div": _binary("floor_div", "a", "b", lambda a, b: torch.div(a, b, rounding_mode="floor")),
    "mod": _binary("mod", "a", "b", torch.remainder),
    "mod_float": _binary("mod", "x", "p", torch.remainder),
    **{
        name: (
            lambda mb, x, p, name=name, **_: getattr(mb, name)(x=mb.greater(x=x, y=0.0), y=mb.less(x=p, y=1.0)),
            lambda t, reference=reference: reference(t["x"] > 0, t["p"] < 1),
        )
        for name, reference in LOGICAL.items()
    },
    "logical_not": (lambda mb, x, **_: mb.logical_not(x=mb.greater(x=x, y=0.0)), lambda t: ~(t["x"] > 0)),
    "select": (
        lambda mb, x, p, u, **_: mb.select(cond=mb.greater(x=x, y=0.0), a=p, b=u),
        lambda t: torch.where(t["x"] > 0, t["p"], t["u"]),
    ),
    "cast_int": (lambda mb, x, **_: mb.cast(x=x, dtype="int32"), lambda t: t["x"].int()),
    "cast_bool": (lambda mb, a, **_: mb.cast(x=mb.sub(x=a, y=3), dtype="bool"), lambda t: (t["a"] - 3).bool()),
    "clip": (lambda mb, x, **_: mb.clip(x=x, alpha=-0.5, beta=1.0), lambda t: t["x"].clip(-0.5, 1)),
    "inverse": (lambda mb, p, **_: mb.inverse(x=p, epsilon=0.5), lambda t: 1 / (t["p"] + 0.5)),
    "threshold": (lambda mb, x, **_: mb.threshold(x=x, alpha=0.5), lambda t: t["x"].clip(0.5)),
    "gelu": (lambda mb, x, **_: mb.gelu(x=x), lambda t: functional.gelu(t["x"])),
    "gelu_tanh": (
        lambda mb, x, **_: mb.gelu(x=x, mode="TANH_APPROXIMATION"),
        lambda t: functional.gelu(t["x"], approximate="tanh"),
    ),
    "gelu_sigmoid": (
        lambda mb, x, **_: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"),
        lambda t: t["x"] * torch.sigmoid(1.702 * t["x"]),
    ),
    "elu": (lambda mb, x, **_: mb.elu(x=x, alpha=0.7), lambda t: functional.elu(t["x"], 0.7)),
    "leaky_relu": (lambda mb, x, **_: mb.leaky_relu(x=x, alpha=0.1), lambda t: functional.leaky_relu(t["x"], 0.1)),
    "prelu": (
        lambda mb, image, **_: mb.prelu(x=image, alpha=np.array([0.1, 0.2, 0.3], np.float32)),
        lambda t: functional.prelu(t["image"], torch.tensor([0.1, 0.2, 0.3])),
    ),
    "clamped_relu": (
        lambda mb, x, **_: mb.clamped_relu(x=x, alpha=0.1, beta=1.0),
        lambda t: functional.leaky_relu(t["x"], 0.1).clip(max=1),
    ),
    "linear_activation": (lambda mb, x, **_: mb.linear_activation(x=x, alpha=2.0, beta=1.0), lambda t: 2 * t["x"] + 1),
    "scaled_tanh": (
        lambda mb, x, **_: mb.scaled_tanh(x=x, alpha=2.0, beta=0.5),
        lambda t: 2 * torch.tanh(0.5 * t["x"]),
    ),
    "sigmoid_hard": (
        lambda mb, x, **_: mb.sigmoid_hard(x=x, alpha=0.3, beta=0.4),
        lambda t: (0.3 * t["x"] + 0.4).clip(0, 1),
    ),
    "softplus_parametric": (
        lambda mb, image, **_: mb.softplus_parametric(
            x=image, alpha=np.array([1, 2, 3], np.float32), beta=np.array([0.5, 1, 2], np.float32)
        ),
        lambda t: _channels(1, 2, 3) * functional.softplus(t["image"] * _channels(0.5, 1, 2)),
    ),
    "thresholded_relu": (
        lambda mb, x, **_: mb.thresholded_relu(x=x, alpha=0.5),
        lambda t: functional.threshold(t["x"], 0.5, 0.0),
    ),
    **{
        f"{name}_{''.join(map(str, axes))}{'k' * keep}": (
            lambda mb, x, name=name, axes=axes, keep=keep, **_: getattr(mb, name)(x=x, axes=axes, keep_dims=keep),
            lambda t, reference=reference, axes=axes, keep=keep: reference(t["x"], dim=axes, keepdim=keep),
        )
        for name, reference in REDUCED.items()
        for axes, keep in (((2,), True), ((0, 2), False))
    },
    "reduce_prod": (lambda mb, x, **_: mb.reduce_prod(x=x, axes=[1]), lambda t: t["x"].prod(1)),
    "reduce_all": (lambda mb, x, **_: mb.reduce_sum(x=x), lambda t: t["x"].sum()),
    "reduce_l1_norm": (lambda mb, x, **_: mb.reduce_l1_norm(x=x, axes=[1]), lambda t: t["x"].abs().sum(1)),
    "reduce_l2_norm": (lambda mb, x, **_: mb.reduce_l2_norm(x=x, axes=[1]), lambda t: t["x"].norm(dim=1)),
    "reduce_sum_square": (lambda mb, x, **_: mb.reduce_sum_square(x=x, axes=[1]), lambda t: (t["x"] ** 2).sum(1)),
    "reduce_log_sum": (lambda mb, p, **_: mb.reduce_log_sum(x=p, axes=[1]), lambda t: t["p"].sum(1).log()),
    "reduce_argmax": (lambda mb, x, **_: mb.reduce_argmax(x=x, axis=1), lambda t: t["x"].argmax(1)),
    "reduce_argmin": (
        lambda mb, x, **_: mb.reduce_argmin(x=x, axis=2, keep_dims=True),
        lambda t: t["x"].argmin(2, True),
    ),
    "cumsum": (lambda mb, x, **_: mb.cumsum(x=x, axis=1), lambda t: t["x"].cumsum(1)),
    "cumsum_other": (
        lambda mb, x, **_: mb.cumsum(x=x, axis=2, exclusive=True, reverse=True),
        lambda t: t["x"].flip(2).cumsum(2).flip(2) - t["x"],
    ),
    "argsort": (lambda mb, x, **_: mb.argsort(x=x, axis=1, ascending=True), lambda t: t["x"].argsort(1)),
    "topk": (lambda mb, x, **_: mb.topk(x=x, k=2, axis=-1)[0], lambda t: t["x"].topk(2).values),
    "topk_where": (lambda mb, x, **_: mb.topk(x=x, k=2, axis=-1)[1], lambda t: t["x"].topk(2).indices),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return answers(CASES, INPUTS, tmp_path_factory.mktemp("operators"))


@pytest.mark.parametrize("name", CASES)
def test_operator_is_pytorchs(name, results):
    wanted = expected(CASES[name], INPUTS)
    assert results[name].shape == wanted.shape
    np.testing.assert_allclose(results[name], wanted, rtol=2e-6, atol=1e-6)
