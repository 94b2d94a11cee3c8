"""A traced graph as ONNX Runtime runs it fastest: the cache within Attention, heads as one axis, sums within norms.

A trace joins each layer's past and new keys itself, and turns [batch, tokens, heads * size], which a projection makes,
to [batch, heads, tokens, size] and back. ONNX's operators of opset 23 take both as they come: Attention the past as
inputs and the new cache as outputs, RotaryEmbedding and Attention three axes and the number of heads.
https://onnx.ai/onnx/operators/onnx__Attention.html

Of a layer with 9 heads of 64 and 512 tokens of past ONNX Runtime 1.31 takes 98 µs for a token so (2 cores), 124 µs with
its own GroupQueryAttention, which also counts the mask (padding on the left gives other answers) and takes neither
batches behind a past nor head sizes that are no multiple of 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from exporter.targets.onnx_graph.attention_operator import heads_of
from exporter.targets.onnx_graph.fused_operators import simplify
from exporter.targets.onnx_graph.nodes import constant, hand_over, insert

if TYPE_CHECKING:
    import onnx_ir as ir

_TURN = [0, 2, 1, 3]  # [batch, heads, tokens, size] from and to [batch, tokens, heads, size]
_END = 1 << 31  # a slice to there is to the end


def fuse(model: ir.Model) -> None:
    """Finds the operators in a trace that ONNX Runtime has one kernel for; what does not match stays as it is."""
    simplify(model)
    keep_caches(model)
    join_residuals(model)


def keep_caches(model: ir.Model) -> None:
    """Gives each Attention its layer's past as an input and the grown cache as an output, and heads as one axis.

    In a graph with a cache, one that reads another layer's keys stays as it is.
    """
    from onnx_ir.passes import common

    has_cache = any(str(value.name).startswith("past_key_values.") for value in model.graph.inputs)
    for node in [node for node in model.graph if node.op_type == "Attention" and not node.domain]:
        _, key, value, mask = node.inputs[:4]
        assert key is not None
        assert value is not None
        keys, values = (_Grown.of(one) for one in (key, value))
        if mask is not None and (keys is None) == (values is None) == (not has_cache):
            _as_one(model, node, keys, values)
    common.RemoveUnusedNodesPass()(model)
    model.graph.sort()


def join_residuals(model: ir.Model) -> None:
    """Adds what a layer gives to what goes past it within the normalization that follows: one pass over the memory."""
    from onnx_ir.passes import common

    for node in [node for node in model.graph if node.op_type == "RMSNormalization"]:
        total, scale = node.inputs[0], node.inputs[1]
        add = total.producer() if total is not None else None
        if add is None or add.op_type != "Add" or scale is None or total in model.graph.outputs:
            continue
        if not all(_is_stream(value) for value in (*add.inputs, total)):
            continue
        epsilon = {"epsilon": node.attributes["epsilon"].as_float()}
        operands = [*add.inputs, scale]
        made = insert(add, "SkipSimplifiedLayerNormalization", operands, epsilon, 4, domain="com.microsoft")
        model.opset_imports["com.microsoft"] = 1
        for old, new in ((node.outputs[0], made[0]), (add.outputs[0], made[3])):
            hand_over(old, new)
        model.graph.remove([node, add], safe=True)
    common.RemoveUnusedNodesPass()(model)
    model.graph.sort()


def _is_stream(value: ir.Value | None) -> bool:
    """Whether a value is [batch, tokens, width] of its own, nothing that is broadcast over it."""
    if value is None or value.is_initializer() or value.shape is None:
        return False
    return len(value.shape) == 3 and 1 not in value.shape.dims


@dataclass(frozen=True)
class _Grown:
    """A layer's past and what is new of it, and the output of the graph that both together are."""

    past: ir.Value
    new: ir.Value
    present: ir.Value

    @classmethod
    def of(cls, value: ir.Value) -> _Grown | None:
        maker = value.producer()
        if maker is None or maker.op_type != "Concat" or len(maker.inputs) != 2 or not value.is_graph_output():
            return None
        past, new = maker.inputs
        if past is None or new is None or not past.is_graph_input() or maker.attributes["axis"].as_int() not in (2, -2):
            return None
        return cls(past, new, value)


def _as_one(model: ir.Model, node: ir.Node, keys: _Grown | None, values: _Grown | None) -> None:
    heads, kv_heads, size, value_size = heads_of(node)
    query, key, value, mask = node.inputs[:4]
    flat = [
        _flat(model, node, "query", query, heads, size),
        _flat(model, node, "key", keys.new if keys else key, kv_heads, size),
        _flat(model, node, "value", values.new if values else value, kv_heads, value_size),
    ]
    attributes = {"scale": node.attributes["scale"].as_float(), "q_num_heads": heads, "kv_num_heads": kv_heads}
    operands = [*flat, mask, *([keys.past, values.past] if keys and values else [])]
    made = insert(node, "Attention", operands, attributes, 3 if keys else 1, label="flat")
    made[0].name = f"{node.outputs[0].name}/flat"
    for grown, present in zip((keys, values), made[1:], strict=False):
        assert grown is not None
        hand_over(grown.present, present)
    _hand_out(model, node, made[0], heads, value_size)


def _flat(model: ir.Model, node: ir.Node, role: str, value: ir.Value | None, heads: int, size: int) -> ir.Value:
    """[batch, heads, tokens, size] as [batch, tokens, heads * size]: what it was made of, where that is so already."""
    assert value is not None
    maker = value.producer()
    if maker is not None and (rotation := _Rotation.of(maker)) is not None:
        inner = _flat(model, node, role, rotation.whole, heads, size)
        attributes = {"num_heads": heads, **({"rotary_embedding_dim": rotation.turned} if rotation.turned else {})}
        return insert(node, "RotaryEmbedding", [inner, *rotation.angles], attributes, label=f"{role}_turned")[0]
    if maker is not None and maker.op_type == "Transpose" and list(maker.attributes["perm"].as_ints()) == _TURN:
        beside = maker.inputs[0]
        assert beside is not None
        before = beside.producer()
        source = before.inputs[0] if before is not None and before.op_type == "Reshape" else None
        shape = None if source is None else source.shape
        if source is not None and shape is not None and len(shape) == 3 and shape[2] == heads * size:
            return source
    else:
        [beside] = insert(node, "Transpose", [value], {"perm": _TURN}, label=f"{role}_beside")
    width = constant(model, f"flat_{heads * size}", np.array([0, 0, heads * size], np.int64))
    return insert(node, "Reshape", [beside, width], label=f"{role}_flat")[0]


@dataclass(frozen=True)
class _Rotation:
    """What is turned, its cosines and sines, and how many of each head's numbers; None: all."""

    whole: ir.Value
    angles: tuple[ir.Value, ...]
    turned: int | None

    @classmethod
    def of(cls, maker: ir.Node) -> _Rotation | None:
        if maker.op_type == "RotaryEmbedding":
            whole, *angles = [value for value in maker.inputs if value is not None]
            return cls(whole, tuple(angles), None)
        if maker.op_type != "Concat" or len(maker.inputs) != 2 or maker.attributes["axis"].as_int() not in (3, -1):
            return None
        first, second = (value.producer() if value is not None else None for value in maker.inputs)
        if first is None or second is None or first.op_type != "RotaryEmbedding":
            return None
        part, *angles = [value for value in first.inputs if value is not None]
        low, high = (_Slice.of(one) for one in (part.producer(), second))
        if low is None or high is None or low.whole is not high.whole:
            return None
        return cls(low.whole, tuple(angles), low.end) if low.start == 0 and low.end == high.start else None


@dataclass(frozen=True)
class _Slice:
    """A part of each head's numbers."""

    whole: ir.Value
    start: int
    end: int

    @classmethod
    def of(cls, node: ir.Node | None) -> _Slice | None:
        if node is None or node.op_type != "Slice":
            return None
        whole, *rest = node.inputs
        numbers = [
            None if value is None or value.const_value is None else value.const_value.numpy().tolist() for value in rest
        ]
        if whole is None or any(number is None or len(number) != 1 for number in numbers):
            return None
        [start], [end], [axis], *steps = numbers  # type: ignore[misc]  # none is None
        return cls(whole, start, min(end, _END)) if axis in (3, -1) and steps in ([], [[1]]) else None


def _hand_out(model: ir.Model, node: ir.Node, made: ir.Value, heads: int, size: int) -> None:
    """Gives the readers of an Attention with four axes what one with three made."""
    shape = constant(model, f"heads_{heads}_{size}", np.array([0, 0, heads, size], np.int64))
    [beside] = insert(node, "Reshape", [made, shape], label="beside")
    for user, _ in list(node.outputs[0].uses()):
        if user.op_type == "Transpose" and list(user.attributes["perm"].as_ints()) == _TURN:
            for reader, _ in list(user.outputs[0].uses()):
                known = reader.outputs[0].shape
                if reader.op_type == "Reshape" and known is not None and len(known) == 3:
                    reader.outputs[0].replace_all_uses_with(made)
            user.outputs[0].replace_all_uses_with(beside)
    if node.outputs[0].uses():
        [turned] = insert(node, "Transpose", [beside], {"perm": _TURN}, label="turned")
        node.outputs[0].replace_all_uses_with(turned)
