"""The graph that is handed to TensorRT: minimal, float32 and float16 only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from exporter.errors import BuildError
from exporter.targets.onnx_file import save_graph
from exporter.targets.onnx_half import half
from exporter.targets.traced_graph import trace_causal_lm, trace_encoder
from exporter.types import GENERATION, ExportRequest


@dataclass(frozen=True)
class Graph:
    """What was written."""

    kept_float: tuple[str, ...] = ()
    int8_share: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def write_graph(request: ExportRequest, model_onnx: Path) -> Graph:
    """Writes the checkpoint as plain ONNX of the request's precision."""
    import onnx_ir as ir

    start = perf_counter()
    if request.precision not in ("fp32", "fp16"):
        raise BuildError(f"the graph of {request.precision} is not written yet")
    checkpoint = request.checkpoint
    if checkpoint.task == GENERATION:
        trace_causal_lm(checkpoint.path, model_onnx, trust_remote_code=checkpoint.trust_remote_code)
    else:
        trace_encoder(checkpoint.path, checkpoint.task, model_onnx, trust_remote_code=checkpoint.trust_remote_code)
    traced = perf_counter()
    if request.precision == "fp16":
        save_graph(half(ir.load(model_onnx)), model_onnx.with_suffix(".half"))
        model_onnx.with_suffix(".half").replace(model_onnx)
    return Graph(seconds={"graph": traced - start, "cast": perf_counter() - traced})
