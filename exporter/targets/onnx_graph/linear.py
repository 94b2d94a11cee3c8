"""The weight matrices of an ONNX graph, whoever made it: where each is multiplied with, and where it is looked up.

A matrix is seen as [N, K], N output channels (or rows of a table) of K inputs, however the graph stores it, so that a
tied embedding is one matrix with two uses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from exporter.runner import Floats

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass
class Matrix:
    """A float32 weight matrix [N, K] and the nodes that use it."""

    value: ir.Value
    stored_as_kn: bool
    products: list[ir.Node] = field(default_factory=list)  # MatMul, or Gemm without scaling
    lookups: list[ir.Node] = field(default_factory=list)  # Gather of rows
    modules: tuple[str, ...] = ()  # whose weights are stacked in it, where a policy made them known
    rows: tuple[int, ...] = ()  # how many channels each of them has

    @property
    def shape(self) -> tuple[int, int]:
        assert self.value.const_value is not None
        rows, columns = self.value.const_value.shape.numpy()
        return (columns, rows) if self.stored_as_kn else (rows, columns)

    def read(self) -> Floats:
        """The matrix as [N, K], contiguous."""
        assert self.value.const_value is not None
        stored = self.value.const_value.numpy()
        return np.ascontiguousarray(stored.T if self.stored_as_kn else stored)

    def is_last(self, graph: ir.Graph) -> bool:
        """Whether one of its products is an output of the graph: the language model's head."""
        return any(node.outputs[0] in graph.outputs for node in self.products)


def find_matrices(model: ir.Model) -> list[Matrix]:
    """Every float32 matrix that all its users multiply with or look rows up in, in the order of first use."""
    found: dict[str, Matrix] = {}
    spoiled: set[str] = set()
    for node in model.graph:
        for position, operand in enumerate(node.inputs):
            if operand is None:
                continue
            value, turned = _behind_transpose(operand)
            if value is None or not is_matrix(value):
                continue
            name = str(value.name)
            role = _role(node, position, turned)
            if (
                node.op_type == "Transpose"
                and operand is value
                and all(u.op_type != "Transpose" for u, _ in node.outputs[0].uses())
            ):
                continue  # its users are visited themselves
            if role is None:
                spoiled.add(name)
                continue
            is_lookup, as_kn = role
            matrix = found.setdefault(name, Matrix(value, as_kn))
            if matrix.stored_as_kn != as_kn:
                spoiled.add(name)
            (matrix.lookups if is_lookup else matrix.products).append(node)
    return [matrix for name, matrix in found.items() if name not in spoiled]


def _behind_transpose(value: ir.Value) -> tuple[ir.Value | None, bool]:
    """The initializer that a value is or is the transpose of, and which of the two."""
    if value.is_initializer():
        return value, False
    maker = value.producer()
    if maker is not None and maker.op_type == "Transpose":
        source = maker.inputs[0]
        perm = maker.attributes.get("perm")
        if source is not None and source.is_initializer() and (perm is None or list(perm.as_ints()) == [1, 0]):
            return source, True
    return None, False


def is_matrix(value: ir.Value) -> bool:
    """Whether an initializer is a float32 matrix, whatever it is used for."""
    tensor = value.const_value
    return tensor is not None and len(tensor.shape) == 2 and tensor.dtype.name == "FLOAT"


def _role(node: ir.Node, position: int, turned: bool) -> tuple[bool, bool] | None:
    """(is it a lookup, is it stored as [K, N]) for a use that quantized operators have, else None."""
    if node.op_type == "MatMul" and position == 1:
        return False, not turned
    if node.op_type == "Gemm" and position == 1 and _plain_gemm(node):
        return False, _attribute(node, "transB", 0) == turned
    if node.op_type == "Gather" and position == 0 and _attribute(node, "axis", 0) == 0:
        return True, turned
    return None


def _plain_gemm(node: ir.Node) -> bool:
    scales = [node.attributes[name].as_float() for name in ("alpha", "beta") if name in node.attributes]
    return all(scale == 1.0 for scale in scales) and _attribute(node, "transA", 0) == 0


def _attribute(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default
