"""MIL's elementwise operators. Parameters are named as in the specification, with its defaults.

https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from exporter.targets.coreml.mil.blob import Array

Operator = Callable[..., Any]


def sigmoid(x: Array) -> Array:
    found: Array = np.negative(x, out=np.empty_like(x))
    np.exp(found, out=found)
    found += 1
    np.reciprocal(found, out=found)
    return found


def silu(x: Array) -> Array:
    found: Array = np.negative(x, out=np.empty_like(x))
    np.exp(found, out=found)
    found += 1
    np.divide(x, found, out=found)
    return found


def erf(x: Array) -> Array:
    """Abramowitz and Stegun's 7.1.26, in float32: within 5e-7 of the function."""
    size = np.abs(x, out=np.empty_like(x))
    t = 1 / (1 + np.float32(0.3275911) * size)
    tail: Array = np.full_like(t, 1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail *= t
        tail += np.float32(coefficient)
    tail *= t
    np.square(size, out=size)
    np.negative(size, out=size)
    tail *= np.exp(size, out=size)
    np.subtract(1, tail, out=tail)
    np.copysign(tail, x, out=tail)
    return tail


def gelu(x: Array, mode: str = "EXACT") -> Array:
    if mode == "SIGMOID_APPROXIMATION":
        gate: Array = x * sigmoid(x * np.float32(1.702))
        return gate
    if mode == "TANH_APPROXIMATION":
        inner = np.square(x, out=np.empty_like(x))
        inner *= np.float32(0.044715)
        inner += 1
        inner *= x
        inner *= np.float32(np.sqrt(2 / np.pi))
        part: Array = np.tanh(inner, out=inner)
    else:
        part = erf(x * np.float32(np.sqrt(0.5)))
    part += 1
    part *= x
    part *= np.float32(0.5)
    return part


def softplus(x: Array) -> Array:
    found: Array = np.logaddexp(x, np.float32(0))
    return found


def softplus_parametric(x: Array, alpha: Array, beta: Array) -> Array:
    """`alpha` and `beta` of the second dimension."""
    found: Array = _of_channels(alpha, x) * softplus(_of_channels(beta, x) * x)
    return found


def prelu(x: Array, alpha: Array) -> Array:
    """`alpha` of the second dimension."""
    return np.where(x >= 0, x, _of_channels(alpha, x) * x)


def _of_channels(parameter: Array, x: Array) -> Array:
    return np.reshape(parameter, (-1, *[1] * (x.ndim - 2)))


def elu(x: Array, alpha: Any) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def cast(x: Array, dtype: str) -> Array:
    """A copy. The result's declared type does the rest; only a number's truth is no rounding of it."""
    found: Array = np.not_equal(x, 0) if dtype == "bool" else np.array(x)
    return found


def clip(x: Array, alpha: Any, beta: Any) -> Array:
    found: Array = np.clip(x, alpha, beta)
    return found


def clamped_relu(x: Array, alpha: Any, beta: Any) -> Array:
    found: Array = np.minimum(np.where(x >= 0, x, alpha * x), beta)
    return found


def log(x: Array, epsilon: Any = 1e-45) -> Array:
    found: Array = np.log(x + np.float32(epsilon))
    return found


def rsqrt(x: Array, epsilon: Any = 1e-12) -> Array:
    found: Array = np.add(x, np.float32(epsilon), out=np.empty_like(x))
    np.sqrt(found, out=found)
    np.reciprocal(found, out=found)
    return found


def inverse(x: Array, epsilon: Any = 1e-4) -> Array:
    found: Array = np.reciprocal(x + np.float32(epsilon))
    return found


def power(x: Array, y: Any) -> Array:
    # A square is exact to the last bit and quick; norms are made of them.
    if np.ndim(y) == 0 and y == 2:
        return np.multiply(x, x)
    found: Array = np.power(x, y)
    return found


def select(cond: Array, a: Array, b: Array) -> Array:
    return np.where(cond, a, b)


def _one(function: Callable[[Any], Any]) -> Operator:
    return lambda x: function(x)


def _two(function: Callable[[Any, Any], Any]) -> Operator:
    return lambda x, y: function(x, y)


# Those that give one of the numbers they got, or a whole one: nothing is to be rounded.
EXACT: dict[str, Operator] = {
    "abs": _one(np.abs),
    "ceil": _one(np.ceil),
    "clip": clip,
    "equal": _two(np.equal),
    "floor": _one(np.floor),
    "greater": _two(np.greater),
    "greater_equal": _two(np.greater_equal),
    "less": _two(np.less),
    "less_equal": _two(np.less_equal),
    "logical_and": _two(np.logical_and),
    "logical_not": _one(np.logical_not),
    "logical_or": _two(np.logical_or),
    "logical_xor": _two(np.logical_xor),
    "maximum": _two(np.maximum),
    "minimum": _two(np.minimum),
    "not_equal": _two(np.not_equal),
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "round": _one(np.rint),
    "select": select,
    "sign": _one(np.sign),
    "threshold": lambda x, alpha: np.maximum(x, alpha),
    "thresholded_relu": lambda x, alpha: np.where(x >= alpha, x, np.float32(0)),
}

ELEMENTWISE: dict[str, Operator] = {
    "acos": _one(np.arccos),
    "add": _two(np.add),
    "asin": _one(np.arcsin),
    "atan": _one(np.arctan),
    "atanh": _one(np.arctanh),
    "cast": cast,
    "clamped_relu": clamped_relu,
    "cos": _one(np.cos),
    "cosh": _one(np.cosh),
    "elu": elu,
    "erf": _one(erf),
    "exp": _one(np.exp),
    "exp2": _one(np.exp2),
    "floor_div": _two(np.floor_divide),
    "gelu": gelu,
    "inverse": inverse,
    "leaky_relu": lambda x, alpha: np.where(x >= 0, x, alpha * x),
    "linear_activation": lambda x, alpha, beta: alpha * x + beta,
    "log": log,
    "mod": _two(np.mod),
    "mul": _two(np.multiply),
    "pow": _two(power),
    "prelu": prelu,
    "real_div": _two(np.true_divide),
    "rsqrt": rsqrt,
    "scaled_tanh": lambda x, alpha, beta: alpha * np.tanh(beta * x),
    "sigmoid": _one(sigmoid),
    "sigmoid_hard": lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1),
    "silu": _one(silu),
    "sin": _one(np.sin),
    "sinh": _one(np.sinh),
    "softplus": _one(softplus),
    "softplus_parametric": softplus_parametric,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "sqrt": _one(np.sqrt),
    "square": _one(np.square),
    "sub": _two(np.subtract),
    "tan": _one(np.tan),
    "tanh": _one(np.tanh),
}
