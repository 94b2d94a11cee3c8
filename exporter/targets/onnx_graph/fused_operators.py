"""A traced graph with RMSNormalization and RotaryEmbedding (opset 23) as operators, and without what it says twice.

A trace spells each normalization out in seven nodes and each rotation in thirty, half of those about shapes. As one
operator a normalization needs no types of its own: it computes in float32 by its specification,
https://onnx.ai/onnx/operators/onnx__RMSNormalization.html. What does not match in every constant stays as it is.

SmolLM2-135M in float16 with TensorRT-RTX 1.7.1 on 2 cores of an AMD EPYC, medians of 3 builds; the engines have 365
layers each:

    as traced                      3,201 nodes  269.96 MB  parsed in 0.40 s  built in 7.4 s  engine 285.99 MB
    without what is there twice    2,168        269.67     0.31              7.9             285.99
    and RMSNormalization           1,680        269.48     0.31              9.0             285.86
    and RotaryEmbedding            1,077        269.32     0.26              6.5             286.10
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.targets.onnx_graph.attention_operator import OPSET
from exporter.targets.onnx_graph.file import SMALL
from exporter.targets.onnx_graph.nodes import constant, insert, replace

if TYPE_CHECKING:
    import onnx_ir as ir

_END = 1 << 31  # a slice to there is to the end


def simplify(model: ir.Model, lacking: Collection[str] = ()) -> None:
    """Computes what is constant, shares what is there twice, and finds the operators, but not those of `lacking`."""
    from onnx_ir.passes import common
    from onnxscript import optimizer
    from onnxscript.rewriter.rules.common import mul_by_1_rule, no_op_cast_rule

    # Of small constants only: weights are not read, and stay under their names.
    optimizer.fold_constants(model, onnx_shape_inference=True, input_size_limit=SMALL, output_size_limit=SMALL)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.DeduplicateInitializersPass(size_limit=SMALL)(model)
    _rewrite(model, [mul_by_1_rule, no_op_cast_rule])
    rules = [rule for operator in OPERATORS if operator not in lacking for rule in _rules(operator)]
    if _rewrite(model, rules):
        model.opset_imports[""] = OPSET
        model.ir_version = max(model.ir_version or 0, 10)
    for node in model.graph:
        if node.op_type in OPERATORS:
            node.name = str(node.outputs[0].name).removesuffix("_output_0")  # of the node that made it, with its module


def write_out(model: ir.Model) -> None:
    """Puts each step in the operators' places whose result has a type of its own.

    A normalized row is in the input's type before it is scaled; a rotation is four products, a difference and a sum.
    """
    for node in list(model.graph):
        if node.op_type == "RMSNormalization":
            _write_out_scale(model, node)
        elif node.op_type == "RotaryEmbedding":
            _write_out_rotation(model, node)


def _write_out_scale(model: ir.Model, node: ir.Node) -> None:
    x, scale = (value for value in node.inputs if value is not None)
    kind = np.dtype(np.float32) if x.dtype is None else x.dtype.numpy()
    one = constant(model, f"one_{kind}", np.ones(1, kind))
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    [normal] = insert(node, "RMSNormalization", [x, one], attributes, label="normal")
    replace(node, "Mul", [normal, scale], {})


def _write_out_rotation(model: ir.Model, node: ir.Node) -> None:
    whole, cosines, sines = (value for value in node.inputs if value is not None)
    heads = constant(model, "rotary_heads", np.array([1], np.int64))
    [cosine] = insert(node, "Unsqueeze", [cosines, heads], label="cosine")
    [sine] = insert(node, "Unsqueeze", [sines, heads], label="sine")
    first, second = insert(node, "Split", [whole], {"axis": -1, "num_outputs": 2}, outputs=2, label="halves")

    def product(label: str, *factors: ir.Value) -> ir.Value:
        [made] = insert(node, "Mul", factors, label=label)
        return made

    real = [product("first_cosine", first, cosine), product("second_sine", second, sine)]
    other = [product("first_sine", first, sine), product("second_cosine", second, cosine)]
    turned = [*insert(node, "Sub", real, label="real"), *insert(node, "Add", other, label="other")]
    replace(node, "Concat", turned, {"axis": -1})


def _rewrite(model: ir.Model, rules: list[Any]) -> int:
    from onnx_ir.passes import common
    from onnxscript.rewriter import RewriteRuleSet

    count = RewriteRuleSet(rules).apply_to_model(model) if rules else 0
    common.IdentityEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    return count


def _rules(operator: str) -> list[Any]:
    """What finds an operator, with the factors and terms in any order."""
    from onnxscript.rewriter import RewriteRule

    # The nodes about shapes have other readers too: what nothing reads is removed afterwards.
    spelled_out, as_one, matches = OPERATORS[operator]
    return list(RewriteRule(spelled_out, as_one, matches, remove_nodes=False).commute())


def _normalization(op: Any, x: Any, scale: Any, two: Any, axes: Any, epsilon: Any, one: Any) -> Any:
    mean = op.ReduceMean(op.Pow(x, two), axes, keepdims=1)
    return op.Mul(scale, op.Mul(x, op.Div(one, op.Sqrt(op.Add(mean, epsilon)))))


def _as_normalization(op: Any, x: Any, scale: Any, epsilon: Any, **_: Any) -> Any:
    return op.RMSNormalization(x, scale, axis=-1, epsilon=_number(epsilon), stash_type=1)


def _is_normalization(_: Any, scale: Any, two: Any, axes: Any, epsilon: Any, one: Any, **others: Any) -> bool:
    vector = scale.shape is not None and len(scale.shape) == 1
    return vector and (_number(two), _number(axes), _number(one)) == (2, -1, 1) and _number(epsilon) is not None


def _rotation(
    op: Any, x: Any, angles: Any, start: Any, end: Any, axes: Any, steps: Any,
    size: Any, two: Any, zero: Any, heads: Any,
) -> Any:  # fmt: skip
    """transformers' apply_rotary_pos_emb: x cos + rotate_half(x) sin, of [batch, heads, tokens, size]."""
    twice = op.Concat(angles, angles, axis=-1)
    cosine, sine = op.Unsqueeze(op.Cos(twice), heads), op.Unsqueeze(op.Sin(twice), heads)
    middle = op.Unsqueeze(op.Div(op.Gather(op.Shape(x), size, axis=0), two), zero)
    low, high = op.Slice(x, start, middle, axes, steps), op.Slice(x, middle, end, axes, steps)
    return op.Add(op.Mul(x, cosine), op.Mul(op.Concat(op.Neg(high), low, axis=-1), sine))


def _as_rotation(op: Any, x: Any, angles: Any, **_: Any) -> Any:
    return op.RotaryEmbedding(x, op.Cos(angles), op.Sin(angles))


def _is_rotation(_: Any, angles: Any, end: Any, **others: Any) -> bool:
    # The operator does not broadcast: there must be angles for each text of a batch.
    many = angles.shape is not None and len(angles.shape) == 3 and not isinstance(angles.shape[0], int)
    expected = {"start": 0, "axes": 3, "steps": 1, "size": 3, "two": 2, "zero": 0, "heads": 1}
    return many and (_number(end) or 0) >= _END and all(_number(others[name]) == it for name, it in expected.items())


OPERATORS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., bool]]] = {
    "RMSNormalization": (_normalization, _as_normalization, _is_normalization),
    "RotaryEmbedding": (_rotation, _as_rotation, _is_rotation),
}


def _number(value: ir.Value) -> float | None:
    """The only number of a constant."""
    tensor = value.const_value
    return None if tensor is None or tensor.size != 1 else float(tensor.numpy().item())
