"""The oldest ONNX Runtime that opens a graph, read from it: its IR version, its opsets, the runtime's own operators.

Sources: https://onnxruntime.ai/docs/reference/compatibility.html, and of the operators microsoft/onnxruntime's pull
requests 24384 (MatMulNBits of 8 bits), 24239 and 25214 (GatherBlockQuantized). Each line was then tried on graphs of
one node with the CPU wheel of each minor version from 1.17 to 1.31: that version and later ones run it, those before it
refuse it. So were the artifacts of a decoder and of an encoder in every precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from exporter.errors import BuildError
from exporter.targets.onnx_graph import plain

if TYPE_CHECKING:
    import onnx_ir as ir

OLDEST = "1.17"  # that is vouched for: 1.16 has no LayerNormalization in float16 on the CPU

# The first version that takes an IR version, and an opset of ONNX's own operators.
IR_VERSIONS: Mapping[int, str] = {9: OLDEST, 10: "1.18", 11: "1.23", 12: "1.24", 13: "1.24"}
OPSETS: Mapping[int, str] = {20: OLDEST, 21: "1.18", 22: "1.21", 23: "1.23", 24: "1.24", 25: "1.24", 26: "1.25"}
_OLD_TYPES = 16  # of TensorProto's: those up to here, bfloat16, are in every IR version


@dataclass(frozen=True)
class Since:
    """An operator of ONNX Runtime's own: the version that brought it, and what came to it later.

    `most`: inputs that were tried, empty ones counted; `inputs`: the first version that takes so many. `first`: the
    attributes that it came with; `attributes`: later ones, "name" or "name=value", of which what stands alone holds for
    any value. Of anything else it is not known which version has it.
    """

    version: str
    most: int
    first: tuple[str, ...] = ()
    inputs: Mapping[int, str] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)


OPERATORS: Mapping[str, Since] = {  # those that exporter writes
    "GatherBlockQuantized": Since("1.23", 4, ("bits", "block_size", "gather_axis", "quantize_axis")),
    "MatMulNBits": Since(
        OLDEST,
        6,
        ("K", "N", "bits", "block_size", "accuracy_level"),
        inputs={6: "1.19"},
        attributes={"bits=8": "1.22", "bits=2": "1.24"},
    ),
    "SkipSimplifiedLayerNormalization": Since(OLDEST, 3, ("epsilon",)),
}
# QuantizeLinear and DequantizeLinear with block_size: of opset 21, which 1.18 has; but there they load and do not run.
BLOCKED_SCALES = "1.19"
_RUNTIME, _ONNX = "com.microsoft", ("", "ai.onnx")
_OPSET = "opset {}"


def number(version: str) -> tuple[int, ...]:
    """A version to compare with others: of 1.20 and of 1.20.1 the first two numbers count."""
    return tuple(int(part) for part in version.split(".")[:2])


def fit(model: ir.Model, oldest: str | None) -> dict[str, Any]:
    """Writes a finished graph so that old versions open it, where that costs nothing, and returns what `describe` does.

    With `oldest` it is written for that version, at some cost where it must be; raises BuildError where it cannot be,
    with the operators and the versions that they need.
    """
    for node in _nodes(model):
        _drop_empty_ends(node)
    below = number(oldest) if oldest else None
    lookups, products = OPERATORS[plain.LOOKUP].version, OPERATORS[plain.PRODUCT].attributes["bits=8"]
    plain.plain_lookups(model, wherever=below is not None and below < number(lookups))
    if below is not None and number(BLOCKED_SCALES) <= below < number(products):
        plain.plain_products(model)
    if below is not None:
        _lower(model, below)
        late = [_told(model, what, since) for what, since in _wants(model) if since is None or number(since) > below]
        if late:
            raise BuildError(
                f"cannot be written for ONNX Runtime {oldest}: {', '.join(dict.fromkeys(late))}; ask for another "
                "precision or a later version (--onnx-min-onnxruntime)"
            )
    return describe(model)


def describe(model: ir.Model) -> dict[str, Any]:
    """What a graph needs, for the report: `graph` of a row's build.

    `min_onnxruntime` is the first version that opens it (None where an operator is not in the tables above, which
    `because` then names), `because` what needs no older one.
    """
    wants = dict(_wants(model))
    unknown = [what for what, since in wants.items() if since is None]
    newest = max((since for since in wants.values() if since), key=number)
    return {
        "min_onnxruntime": None if unknown else newest,
        "because": unknown or [what for what, since in wants.items() if since == newest],
        "ir_version": model.ir_version,
        "opsets": {domain or "ai.onnx": version for domain, version in sorted(model.opset_imports.items())},
    }


def _wants(model: ir.Model) -> Iterator[tuple[str, str | None]]:
    """What in a graph needs which version; None: nobody knows."""
    yield f"IR version {model.ir_version}", _at_least(IR_VERSIONS, model.ir_version or 0)
    opset = _opset(model)
    yield _OPSET.format(opset), _at_least(OPSETS, opset)
    for node in _nodes(model):
        if node.domain == _RUNTIME:
            yield from _operator_wants(node)
        elif node.domain not in _ONNX:
            yield f"{node.domain}'s {node.op_type}", None
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear") and "block_size" in node.attributes:
            yield f"{node.op_type} with block_size", BLOCKED_SCALES


def _operator_wants(node: ir.Node) -> Iterator[tuple[str, str | None]]:
    name, known = node.op_type, OPERATORS.get(node.op_type)
    if known is None:
        yield name, None
        return
    yield name, known.version
    count = len(node.inputs)
    if count > known.most:
        yield f"{name} with {count} inputs", None
    for least, since in known.inputs.items():
        if count >= least:
            yield f"{name} with {least} inputs", since
    for attribute, held in node.attributes.items():
        told = f"{attribute}={held.value}"
        if told in known.attributes:
            yield f"{name} with {told}", known.attributes[told]
        elif attribute not in known.first:
            yield f"{name} with {attribute}", known.attributes.get(attribute)


def _at_least(table: Mapping[int, str], wanted: int) -> str | None:
    """The first version that takes a number: those below a table's first are older than OLDEST."""
    return next((since for held, since in sorted(table.items()) if held >= wanted), None)


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node, those of subgraphs and functions included."""
    import onnx_ir as ir

    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        yield from ir.traversal.RecursiveGraphIterator(graph)


def _opset(model: ir.Model) -> int:
    return max((model.opset_imports[domain] for domain in _ONNX if domain in model.opset_imports), default=0)


def _drop_empty_ends(node: ir.Node) -> None:
    """Optional inputs that are empty count for older versions, which do not know that there may be so many."""
    count = len(node.inputs)
    while count and node.inputs[count - 1] is None:
        count -= 1
    if count < len(node.inputs):
        node.resize_inputs(count)


def _lower(model: ir.Model, below: tuple[int, ...]) -> None:
    """Declares the opset and IR version of an older version where all that the graph uses is the same there."""
    allowed = max(held for held, since in OPSETS.items() if number(since) <= below)
    if allowed < _opset(model) and max(_defined(model).values(), default=0) <= allowed:
        model.opset_imports[""] = allowed
    ir_version = max(held for held, since in IR_VERSIONS.items() if number(since) <= below)
    types = {value.dtype for value in model.graph.initializers.values()}
    if (model.ir_version or 0) > ir_version and all(kind is not None and kind <= _OLD_TYPES for kind in types):
        model.ir_version = ir_version


def _defined(model: ir.Model) -> dict[str, int]:
    """ONNX's operators in a graph, each with the opset that defined it last: up to the graph's it stays the same."""
    from onnx import defs

    opset = _opset(model)
    used = {node.op_type for node in _nodes(model) if node.domain in _ONNX and defs.has(node.op_type, opset)}
    return {name: defs.get_schema(name, opset).since_version for name in sorted(used)}


def _told(model: ir.Model, what: str, since: str | None) -> str:
    if since is None:
        return f"{what}, of which it is not known which version has it"
    if what != _OPSET.format(_opset(model)):
        return f"{what} needs {since}"
    defined = _defined(model)
    newest = max(defined.values(), default=0)
    return f"{what} ({', '.join(name for name, opset in defined.items() if opset == newest)}) needs {since}"
