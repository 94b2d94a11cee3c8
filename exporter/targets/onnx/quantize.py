"""ONNX precisions of 8 and 4 bits, as a pass over one graph: which matrix gets which scheme, by rule or by policy.

Without a policy a rule gives every matrix one of the precision's schemes. With one each matrix has the scheme of the
modules that it holds; what is only looked up has no module and gets 8 bits.

Tensors are read from the disk one by one: what is held in memory is the new weights, not the float ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from exporter.errors import BuildError
from exporter.quantization.policy import check_schemes
from exporter.scheme import Scheme
from exporter.targets.onnx.kernels import Labels
from exporter.targets.onnx_graph.convolutions import (
    WHOLE,
    Ranges,
    convolutions,
    name_convolutions,
    patches_as_products,
    quantize_convolutions,
)
from exporter.targets.onnx_graph.linear import Matrix, find_matrices
from exporter.targets.onnx_graph.modules import Rows, name_matrices, split_where_schemes_differ
from exporter.targets.onnx_graph.nodes import finish
from exporter.targets.onnx_graph.schemes import GROUPS, expressible, quantize

if TYPE_CHECKING:
    import onnx_ir as ir

INT8 = Scheme(weight="int8", group=32)  # onnxruntime's fast kernels take groups of 32
INT4 = Scheme(weight="int4", group=32, symmetric=False)
DYNAMIC = Scheme(weight="int8", group=None, input="dynamic")
STATIC = Scheme(weight="int8", group=None, input="static")
TABLE = Scheme(weight="int8", group=128)  # of what is only looked up: smaller groups would cost more than they help

# What a policy chooses from for each precision, cheapest first.
SCHEMES: Mapping[str, tuple[Scheme, ...]] = {
    "int8-weight": (INT8,),
    "int8-dynamic": (DYNAMIC, INT8),
    "int8-static": (STATIC, INT8),
    "int4-weight": (INT4, INT8),
}


def cannot_express(precision: str, scheme: Scheme) -> str | None:
    """Why a precision cannot give a layer a scheme, with what it can; None where it can. Ranges are not looked at."""
    if precision not in SCHEMES:
        return f"onnx:{precision} quantizes nothing and takes no policy; those that do: {', '.join(SCHEMES)}"
    inputs = {one.input for one in SCHEMES[precision]}
    if expressible(scheme) and scheme.input in inputs and (precision, scheme.bits) != ("int8-weight", 4):
        return None
    can = "int8" if precision == "int8-weight" else "int8 or int4"
    groups = ", ".join(map(str, GROUPS))
    whole = [f"int8 per channel, symmetric, with a {one} input" for one in ("static", "dynamic") if one in inputs]
    told = "; ".join([*whole, f"{can} in groups of {groups} with a float input; float"])
    return f"onnx:{precision} cannot express {scheme}; it takes {told}"


def quantize_by_rule(model: ir.Model, precision: str, decoder: bool, pictures: bool = False) -> list[str]:
    """Every matrix by the precision's own rule. Returns notes of what stayed in float.

    int4-weight keeps the embedding and the head at 8 bits. In a decoder, what a per-tensor activation range ruins (the
    matrices that narrow, such as a feed-forward's second one, whose inputs have outliers, and the head) does not get
    int8-dynamic's scheme but 8-bit weights in groups.
    """
    left = []
    if pictures:
        patches_as_products(model)
        quantize_convolutions(model, [(node, WHOLE) for node in convolutions(model)], _no_ranges)
    for matrix in find_matrices(model):
        if not matrix.products:
            scheme = _table(matrix)
        elif matrix.lookups or _delicate(model, matrix, precision, decoder):
            scheme = INT8
        else:
            scheme = SCHEMES[precision][0]
        if matrix.shape[1] % (scheme.group or 1):
            left.append(str(matrix.value.name))
        else:
            quantize(model, matrix, scheme)
    finish(model)
    return _left(left)


def check_policy(precision: str, policy: Mapping[str, Scheme | None] | None) -> None:
    """Raises BuildError for a policy that the precision cannot take, or that it lacks."""
    if policy is None and precision == "int8-static":
        raise BuildError("onnx:int8-static needs a policy with the ranges of its inputs; 'exporter run' makes one")
    check_schemes(policy, partial(cannot_express, precision))


def quantize_by_policy(
    model: ir.Model,
    policy: Mapping[str, Scheme | None],
    modules: Mapping[str, Rows],
    decoder: bool,
    pictures: bool = False,
    ranges: Ranges | None = None,
    tables: bool = True,
) -> tuple[list[str], Labels]:
    """Every matrix by the schemes of the modules that it holds; `modules` as of onnx_modules.module_rows.

    The policy must have passed check_policy. Returns notes, and what the weights are called. Raises BuildError for a
    scheme that does not fit its matrix, or that is of a module which is not found in the graph. `tables`: what is only
    looked up is rounded too.
    """
    nodes: dict[str, ir.Node] = {}
    if pictures:
        patches_as_products(model)
        nodes = name_convolutions(convolutions(model), modules)
    whole = {name: scheme for name, scheme in policy.items() if name not in nodes}
    matrices, notes = name_matrices(model, find_matrices(model), whole, modules)
    last = [str(matrix.value.name) for matrix in matrices if matrix.is_last(model.graph)]
    head = last[0] if last and decoder else None
    matrices = [part for one in matrices for part in split_where_schemes_differ(model, one, policy)]
    left = []
    for matrix in matrices:
        scheme = policy.get(matrix.modules[0]) if matrix.modules else None
        if not matrix.products and tables:
            scheme = _table(matrix)
        if scheme is None:
            continue
        inputs = matrix.shape[1]
        if inputs % (scheme.group or 1) == 0:
            quantize(model, matrix, scheme)
        elif matrix.modules:
            wrong = f"{inputs} inputs, no multiple of the group {scheme.group}"
            raise BuildError(f"the policy: {matrix.modules[0]} has {wrong}; give it another group, or float")
        else:
            left.append(str(matrix.value.name))
    # Behind the matrices, whose inputs some of their outputs are.
    convolved = [(node, name, scheme) for name, node in nodes.items() if (scheme := policy.get(name)) is not None]
    for _, name, scheme in convolved:
        if scheme.group is not None:
            raise BuildError(f"the policy: {name} is a convolution, which is no {scheme}: int8 per channel, or float")
    quantize_convolutions(model, [(node, scheme) for node, _, scheme in convolved], ranges or _no_ranges)
    finish(model)
    return notes + _left(left), Labels({str(m.value.name): _label(m) for m in matrices if m.modules}, head)


def _no_ranges(names: list[str]) -> Mapping[str, tuple[float, float]]:
    raise BuildError(f"the outputs of {', '.join(names[:3])} have no ranges; 'exporter run' finds them")


def _label(matrix: Matrix) -> str:
    """model.layers.0.self_attn.q_proj+k_proj+v_proj"""
    first, *others = matrix.modules
    return "+".join([first, *(name.rpartition(".")[2] for name in others)])


def _delicate(model: ir.Model, matrix: Matrix, precision: str, decoder: bool) -> bool:
    channels, inputs = matrix.shape
    if precision == "int8-dynamic":
        return decoder and (inputs > channels or matrix.is_last(model.graph))
    return matrix.is_last(model.graph)


def _table(matrix: Matrix) -> Scheme:
    return INT8 if matrix.shape[1] % (TABLE.group or 1) else TABLE


def _unfit(scheme: Scheme) -> str | None:
    lacking = scheme.input == "static" and scheme.range is None
    return "its static input has no range; 'exporter run' finds one" if lacking else None


def _left(names: list[str]) -> list[str]:
    return [f"kept in float: {', '.join(names)} (no multiple of the block size)"] if names else []
