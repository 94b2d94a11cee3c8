"""What onnxruntime really runs: the kernels that a graph's matrix products got, from the graph as it optimized it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

# Operators whose kernels multiply int8 codes with codes, and the position of their weight.
_INTEGER = {"MatMulIntegerToFloat": 1, "DynamicQuantizeMatMul": 1, "MatMulInteger": 1, "QLinearMatMul": 3, "QGemm": 3}
_CONVOLVED = {"QLinearConv": 3, "Conv": 1, "FusedConv": 1}  # in integers, and in float
_GROUPED = "MatMulNBits"
_FLOAT = {"MatMul": 1, "Gemm": 1, "FusedMatMul": 1, "FusedGemm": 1}
_SHOWN = 8


@dataclass(frozen=True)
class Labels:
    """What weights are called: their names in the graph begin with a key of `modules`, the head's with `head`."""

    modules: Mapping[str, str] = field(default_factory=dict)
    head: str | None = None  # the language model's, which is counted apart

    def of(self, weight: str) -> str:
        fitting = [name for name in self.modules if weight.startswith(name)]
        return self.modules[max(fitting, key=len)] if fitting else weight


@dataclass(frozen=True)
class Product:
    """A product with a weight matrix: the operator that computes it, the weight's name, and its N * K."""

    operator: str
    weight: str
    size: int


def of_half(half: str, products: list[Product], labels: Labels) -> tuple[list[Product], Labels]:
    """Of one of two graphs, whose weights may have the same names: the half's name in front of each."""
    head = None if labels.head is None else f"{half}/{labels.head}"
    named = Labels({f"{half}/{weight}": module for weight, module in labels.modules.items()}, head)
    return [replace(one, weight=f"{half}/{one.weight}") for one in products], named


def weight_products(model: Path, scratch: Path) -> list[Product]:
    """The products of a model with its weights, after onnxruntime's own optimization for this machine's CPU.

    The optimized model is written to `scratch` for a moment.
    """
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        # The weights beside it: in one file they could be more than a protobuf holds.
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.data")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    sizes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    return [product for node in graph.node if (product := _product(node, sizes, makers)) is not None]


def _product(
    node: onnx.NodeProto, sizes: Mapping[str, list[int]], makers: Mapping[str, onnx.NodeProto]
) -> Product | None:
    if node.op_type == _GROUPED:
        numbers = {attribute.name: attribute.i for attribute in node.attribute}
        return Product(node.op_type, node.input[1], numbers["N"] * numbers["K"])
    position = (_INTEGER | _FLOAT | _CONVOLVED).get(node.op_type)
    if position is None:
        return None
    weight = node.input[position]
    while weight not in sizes and weight in makers and makers[weight].op_type in ("DequantizeLinear", "Transpose"):
        weight = makers[weight].input[0]
    if weight not in sizes or (len(sizes[weight]) != 2 and node.op_type not in _CONVOLVED):
        return None  # of two activations, as in attention
    return Product(node.op_type, weight, math.prod(sizes[weight]))


def describe(products: list[Product], labels: Labels) -> str:
    """The share of the multiplications that run in integer kernels, and which do not."""
    layers = [product for product in products if labels.head is None or not product.weight.startswith(labels.head)]
    operators = sorted({product.operator for product in products if _in_integers(product)})
    # A weight of a convolution is multiplied as often as there are places in the picture.
    what = "weights are multiplied" if any(one.operator in _CONVOLVED for one in products) else "multiplications run"
    share = f"{_share(layers):.0%} of the {'' if 'weights' in what else 'linear '}layers' {what} in integer kernels"
    share += f" ({', '.join(operators)})" if operators else ""
    if len(layers) < len(products):
        share += f", {_share(products):.0%} with the head"
    kept = list(dict.fromkeys(labels.of(p.weight) for p in products if not _in_integers(p)))
    if not kept:
        return share
    more = f" and {len(kept) - _SHOWN} more" if len(kept) > _SHOWN else ""
    return f"{share}; kept from it: {', '.join(kept[:_SHOWN])}{more}"


def _in_integers(product: Product) -> bool:
    return product.operator in _INTEGER or product.operator == "QLinearConv"


def _share(products: list[Product]) -> float:
    total = sum(product.size for product in products)
    return sum(product.size for product in products if _in_integers(product)) / max(total, 1)
