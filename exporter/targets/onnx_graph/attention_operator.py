"""ONNX's operator Attention (opset 23) in a traced graph, where transformers lets its attention function be chosen.

The trace of PyTorch's own attention is some fifty nodes for each layer, half of them about shapes. As one operator
the graph has half of its nodes, and engines find their fused kernels. Keys and values are those of the whole cache,
with their own number of heads; the mask is added to the scores.

TensorRT builds the operator from fused kernels only: of float16 or bfloat16, for head sizes of 16 to 256 in steps of 8.
In float32 it fails to build ("not supported by a dedicated kernel"), so there it is written out again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.targets.onnx_graph.nodes import add, constant, insert, replace

if TYPE_CHECKING:
    import onnx_ir as ir

_NAME = "exporter_onnx"  # among transformers' attention implementations, with the sizes that it is for
_DOMAIN = "exporter"  # until the trace is done: TorchScript's exporter knows no opset with Attention
OPSET = 23
# What the operator has no place for: such a model's own code is traced. (For a cap it has one, but ONNX Runtime up to
# 1.25 applies it behind the mask, so that what is hidden counts as a score of -cap does; 1.31 does it as models do.)
_BEYOND = {"softcap": "a cap on the scores", "s_aux": "attention sinks", "position_bias": "a bias of positions"}
KERNEL_SIZES = range(16, 257, 8)  # of heads that TensorRT has kernels for
ANY_SIZE = range(1, 1 << 31)
_HEADS = "exporter.heads"  # of a node's metadata


def use_operator(model: Any, sizes: range) -> set[str]:
    """Lets a model attend through the operator where its heads are of one of the sizes; its own way else.

    What is returned holds after a trace why any of its attention is written out.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    name = f"{_NAME}_{sizes.start}_{sizes.stop}_{sizes.step}"
    told: set[str] = set()
    AttentionInterface.register(name, partial(_attend, sizes, told))
    AttentionMaskInterface.register(name, eager_mask)  # a float mask, which every engine adds: 0 or the least number
    supported = getattr(model, "_supports_attention_backend", False)
    model.set_attn_implementation(name if supported else "eager")
    if not supported:
        told.add(f"{type(model).__name__} has code of its own")
    return told


def heads_of(node: ir.Node) -> tuple[int, int, int, int]:
    """Of a traced Attention: the query's heads, those of keys and values, the head size, and that of values."""
    heads, kv_heads, size, value_size = map(int, node.metadata_props[_HEADS].split())
    return heads, kv_heads, size, value_size


def standard(model: ir.Model) -> None:
    """Brings a traced graph's attention into ONNX's own domain, and the graph to its opset. Others stay as they are.

    What differs between opset 18 and 23 in the operators that a trace has is the types that they take.
    """
    found = [node for node in model.graph if node.domain == _DOMAIN]
    for node in found:
        node.domain = ""
        node.metadata_props[_HEADS] = " ".join(str(n) for n in node.attributes.pop("heads").as_ints())
        node.outputs[0].shape = node.outputs[0].type = None  # TorchScript made up names for the sizes
    if found:
        del model.opset_imports[_DOMAIN]
        model.opset_imports[""] = OPSET
        model.ir_version = max(model.ir_version or 0, 10)


def write_out(model: ir.Model, wanted: Callable[[ir.Node], bool] = lambda node: True) -> None:
    """Replaces operators Attention by scaling, product, mask, softmax and product; values are named after the output.

    Both factors of the scores are scaled by its root, as the specification has it: float16 holds the result longer.
    """
    for node in [node for node in model.graph if node.op_type == "Attention" and wanted(node)]:
        query, key, value, mask = (operand for operand in node.inputs[:4] if operand is not None)
        whole = str(node.outputs[0].name)
        root = np.sqrt(np.float32(node.attributes["scale"].as_float()))
        kind = np.dtype(np.float32) if query.dtype is None else query.dtype.numpy()
        scale = add(model, f"{whole}/scale", np.asarray(root).astype(kind))

        def step(
            label: str, op: str, *inputs: ir.Value, before: ir.Node = node, name: str = whole, **attributes: Any
        ) -> ir.Value:
            [made] = insert(before, op, inputs, attributes, label=label)
            made.name = f"{name}/{label}"
            return made

        first, rest = (_shape(model, numbers) for numbers in ([0], [-1, 0]))
        # [batch, heads, tokens, size] to [batch, heads of keys, heads of each * tokens, size], and back.
        fewer = step("fewer", "Concat", first, step("kv_heads", "Shape", key, start=1, end=2), rest, axis=0)
        all_heads = step("all", "Concat", first, step("heads", "Shape", query, start=1, end=2), rest, axis=0)
        scaled = step("query", "Reshape", step("query_scaled", "Mul", query, scale), fewer)
        keys = step("key", "Mul", step("key_turned", "Transpose", key, perm=[0, 1, 3, 2]), scale)
        scores = step("scores", "Reshape", step("product", "MatMul", scaled, keys), all_heads)
        weights = step("weights", "Softmax", step("masked", "Add", scores, mask), axis=-1)
        answer = step("answer", "MatMul", step("weights_folded", "Reshape", weights, fewer), value)
        replace(node, "Reshape", [answer, all_heads], {})


def _shape(model: ir.Model, numbers: list[int]) -> ir.Value:
    name = f"shape_{'_'.join(map(str, numbers))}"
    return constant(model, name, np.array(numbers, np.int64))


def _attend(
    sizes: range,
    told: set[str],
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    mask: Any,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Any, None]:
    """transformers' attention function: [batch, heads, tokens, head size] each, out [batch, tokens, heads, size]."""
    size = int(query.shape[-1])
    beyond = {words for name, words in _BEYOND.items() if others.get(name) is not None}
    if size not in sizes:
        beyond.add(f"heads of {size} numbers")
    if beyond or mask is None:
        told |= beyond
        eager = sys.modules[type(module).__module__].eager_attention_forward
        return eager(module, query, key, value, mask, scaling=scaling, **others)[0], None
    scale = size**-0.5 if scaling is None else scaling
    heads = [int(query.shape[1]), int(key.shape[1]), size, int(value.shape[-1])]
    return _operator().apply(query, key, value, mask, float(scale), heads).transpose(1, 2).contiguous(), None


@cache
def _operator() -> Any:
    import torch

    class Attention(torch.autograd.Function):
        """softmax(query keyᵀ scale + mask) value, each key's head for as many of the query's as there are."""

        @staticmethod
        def forward(_: Any, query: Any, key: Any, value: Any, mask: Any, scale: float, _heads: list[int]) -> Any:
            shared = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
            return torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=scale)

        @staticmethod
        def symbolic(graph: Any, query: Any, key: Any, value: Any, mask: Any, scale: float, heads: list[int]) -> Any:
            node = graph.op(f"{_DOMAIN}::Attention", query, key, value, mask, scale_f=scale, heads_i=heads)
            node.setType(query.type().with_sizes([None] * 4))
            return node

    return Attention
