"""What ends every graph; of a model of several the precision's pass over each, and what a runtime must have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from exporter.targets.onnx.bf16 import bfloat16_graph
from exporter.targets.onnx.half import half
from exporter.targets.onnx.quantize import SCHEMES, quantize_by_rule
from exporter.targets.onnx_graph import shell, versions
from exporter.targets.onnx_graph.half_scales import halve_scales
from exporter.targets.onnx_graph.joined_products import join_products
from exporter.targets.onnx_graph.traced import notes_of
from exporter.types import ExportRequest

if TYPE_CHECKING:
    import onnx_ir as ir

Needs = Mapping[str, Any]  # of a runtime, as versions.fit tells them
Told = Callable[[Mapping[str, float]], list[str]]  # what becomes of tensors that float16 cannot hold


def at_precision(
    model: ir.Model,
    request: ExportRequest,
    overflowing: Callable[[], Mapping[str, float]],
    told: Told,
    *,
    decoder: bool,
    pictures: bool = False,
    by_policy: Callable[[ir.Model], list[str]] | None = None,
) -> tuple[ir.Model, list[str], Needs]:
    """A float graph brought to the request's precision, notes, and what a runtime must have.

    `overflowing` finds what float16 cannot hold of it; `decoder` and `pictures` are quantize_by_rule's, in whose place
    `by_policy` stands where there is a policy.
    """
    notes = notes_of(model)
    if by_policy is not None:
        notes += by_policy(model)
    elif request.precision == "fp16":
        beyond = overflowing()
        model = half(model, beyond)
        notes += told(beyond)
    elif request.precision == "bf16":
        model = bfloat16_graph(model)
    elif request.precision in SCHEMES:
        notes += quantize_by_rule(model, request.precision, decoder, pictures)
    return model, notes, finish(model, request)


def finish(model: ir.Model, request: ExportRequest) -> dict[str, Any]:
    """What comes after the precision's pass, in place; what a runtime must have to open the graph."""
    if request.precision not in ("int8-static", "bf16"):  # whose kernels are told by their weights' names
        join_products(model)
    needs = versions.fit(model, request.options.min_onnxruntime if request.options else None)
    halve_scales(model)
    shell.check(model)
    return needs


def needs_of_all(needs: Sequence[Needs]) -> dict[str, Any]:
    """What a runtime must have to open all graphs."""
    oldest = [one["min_onnxruntime"] for one in needs]
    least = None if None in oldest else max(oldest, key=versions.number)
    because = [one["because"] for one in needs if one["min_onnxruntime"] == least]
    return {**needs[-1], "min_onnxruntime": least, "because": list(dict.fromkeys(chain(*because)))}
