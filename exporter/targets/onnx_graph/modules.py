"""Which modules of the checkpoint a graph's matrices hold, told by their rows: names do not survive every export.

A builder stacks the query, key and value weights of a layer into one matrix, takes a stacked one apart, and names them
its own way. Each output channel's weights are a row, however they are stored, and two rows are the same when their
64-bit hashes are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exporter.checkpoint.linear import weight_of, weighted_layers
from exporter.errors import BuildError
from exporter.runner import Floats
from exporter.scheme import Scheme
from exporter.targets.onnx_graph import nodes
from exporter.targets.onnx_graph.linear import Matrix, is_matrix

if TYPE_CHECKING:
    import onnx_ir as ir

_CHUNK = 1 << 22  # weights that are hashed at once


@dataclass(frozen=True)
class Rows:
    """A matrix [N, K] by its rows' hashes."""

    hashes: NDArray[np.uint64]  # [N]
    inputs: int  # K


def rows_of(matrix: Floats) -> Rows:
    """The bits of each weight times random odd numbers, summed over a row modulo 2^64."""
    inputs = matrix.shape[1]
    odd = np.random.default_rng(inputs).integers(1 << 63, size=inputs, dtype=np.uint64) << np.uint64(1) | np.uint64(1)
    step = max(_CHUNK // inputs, 1)
    chunks = (np.ascontiguousarray(matrix[at : at + step]) for at in range(0, len(matrix), step))
    return Rows(np.concatenate([chunk.view(np.uint32).astype(np.uint64) @ odd for chunk in chunks]), inputs)


def module_rows(model: Any) -> dict[str, Rows]:
    """The rows of every linear layer of a float torch model by the module's name: Linear, and GPT-2's Conv1D."""
    layers = weighted_layers(model).items()
    return {name: rows_of(weight_of(layer).float().numpy()) for name, layer in layers}


def rows_of_halves(model: Any) -> tuple[dict[str, Rows], dict[str, Rows]]:
    """module_rows of an encoder-decoder's encoder, and of the rest of it."""
    rows, inside = module_rows(model), {*model.get_encoder().modules()}
    encoder = {name: own for name, own in rows.items() if model.get_submodule(name) in inside}
    return encoder, {name: own for name, own in rows.items() if name not in encoder}


def name_matrices(
    model: ir.Model, matrices: Sequence[Matrix], policy: Mapping[str, Scheme | None], modules: Mapping[str, Rows]
) -> tuple[list[Matrix], list[str]]:
    """The matrices with the modules that they hold, and notes.

    A module with a scheme that no matrix holds is noted where the graph does without it, such as an encoder's pooler.
    Raises BuildError where it may be there in a form that no quantized operator takes.
    """
    index = _Index(modules)
    named = []
    for matrix in matrices:
        pieces = index.find(rows_of(matrix.read())) if matrix.products else []
        runs = [(name, sum(count for _, count in run)) for name, run in groupby(pieces, key=lambda piece: piece[0])]
        named.append(replace(matrix, modules=tuple(name for name, _ in runs), rows=tuple(count for _, count in runs)))
    found = {name for matrix in named for name in matrix.modules}
    missing = [name for name, scheme in policy.items() if scheme is not None and name not in found]
    explained = {str(matrix.value.name) for matrix in named if matrix.modules or not matrix.products}
    strange = {
        size: str(value.name)
        for value in model.graph.initializers.values()
        if is_matrix(value) and value.const_value is not None and str(value.name) not in explained
        for size in value.const_value.shape.numpy()
    }
    for name in missing:
        if name not in modules:
            raise BuildError(f"the policy: the checkpoint has no linear layer {name}")
        if modules[name].inputs in strange:
            holder = strange[modules[name].inputs]
            told = f"the graph has no matrix product with its weights (perhaps {holder} is made of them)"
            raise BuildError(f"the policy gives {name} a scheme, but {told}; leave it in float")
    return named, [f"not in the graph, which does without: {', '.join(missing)}"] if missing else []


class _Index:
    """Where a row is found among those of all the modules."""

    def __init__(self, modules: Mapping[str, Rows]) -> None:
        self._modules = modules
        self._names = list(modules)
        self._starts = np.cumsum([0, *(len(rows.hashes) for rows in modules.values())])
        hashes = np.concatenate([np.empty(0, np.uint64), *(rows.hashes for rows in modules.values())])
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]
        self._taken: set[str] = set()

    def find(self, matrix: Rows) -> list[tuple[str, int]]:
        """The (module, number of rows) that follow one another in a matrix; none where a row of it is of no module."""
        pieces, at = [], 0
        while at < len(matrix.hashes):
            fitting = self._longest(Rows(matrix.hashes[at:], matrix.inputs))
            if fitting is None:
                return []
            pieces.append(fitting)
            at += fitting[1]
        self._taken.update(name for name, _ in pieces)
        return pieces

    def _longest(self, rest: Rows) -> tuple[str, int] | None:
        """What the first rows are: a whole module, one that is not taken before a copy of it, or else a part of one."""
        low, high = (np.searchsorted(self._sorted, rest.hashes[0], side) for side in ("left", "right"))
        places = [self._place(int(position)) for position in self._order[low:high]]
        for name, row in sorted(places, key=lambda place: (place[1] > 0, place[0] in self._taken)):
            mine = self._modules[name].hashes[row : row + len(rest.hashes)]
            if self._modules[name].inputs == rest.inputs and np.array_equal(rest.hashes[: len(mine)], mine):
                return name, len(mine)
        return None

    def _place(self, position: int) -> tuple[str, int]:
        number = int(np.searchsorted(self._starts, position, "right")) - 1
        return self._names[number], position - int(self._starts[number])


def split_where_schemes_differ(model: ir.Model, matrix: Matrix, policy: Mapping[str, Scheme | None]) -> list[Matrix]:
    """The matrix itself, or where its modules have different schemes one for each of them, their products joined."""
    import onnx_ir as ir

    if len({policy.get(name) for name in matrix.modules}) < 2 or matrix.lookups:
        return [matrix]
    ends = np.cumsum(matrix.rows)[:-1]
    parts = []
    for name, weight in zip(matrix.modules, np.split(matrix.read(), ends), strict=True):
        value = nodes.add(model, f"{matrix.value.name}/{name}", np.ascontiguousarray(weight.T))
        parts.append(Matrix(value, stored_as_kn=True, modules=(name,), rows=(len(weight),)))
    for node in matrix.products:
        assert node.inputs[0] is not None
        products = [
            nodes.insert(node, "MatMul", [node.inputs[0], part.value], label=part.modules[0])[0] for part in parts
        ]
        for part, product in zip(parts, products, strict=True):
            maker = product.producer()
            assert isinstance(maker, ir.Node)
            part.products.append(maker)
        if len(node.inputs) > 2:
            joined = nodes.insert(node, "Concat", products, {"axis": -1})
            nodes.replace(node, "Add", [joined[0], node.inputs[2]], {})
        else:
            nodes.replace(node, "Concat", products, {"axis": -1})
    return parts
