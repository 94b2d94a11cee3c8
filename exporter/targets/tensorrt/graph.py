"""The graph that is handed to TensorRT: the model's own code traced to plain ONNX, with every tensor's type in it.

    trace     float32, made once for a run; opset 23 where Attention, RMSNormalization or RotaryEmbedding are operators
    prove     that graph against the checkpoint, before anything is quantized
    overflow  the float32 graph on calibration windows: which nodes float16 cannot hold
    quantize  Q/DQ by the policy (int8), or int8 weights (int8-weight)
    cast      half precision wherever that is safe

No contrib operators, and weights beyond 2 GB in model.onnx_data. exporter.targets.onnx_graph.rounding has the graph
that ONNX Runtime can prove.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.form import FORMS
from exporter.scheme import Scheme
from exporter.targets.onnx_graph import fused_operators, shell
from exporter.targets.onnx_graph.attention_operator import KERNEL_SIZES, write_out
from exporter.targets.onnx_graph.file import load_graph, made_once, save_graph
from exporter.targets.onnx_graph.float_proof import prove
from exporter.targets.onnx_graph.half_types import OVERFLOW, lower, prepare
from exporter.targets.onnx_graph.modules import Rows, module_rows
from exporter.targets.onnx_graph.traced import load_model, notes_of, trace_causal_lm, trace_encoder
from exporter.targets.tensorrt.overflow import overflowing
from exporter.targets.tensorrt.quantize import SCHEMES, Products, check_policy, quantize
from exporter.types import GENERATION, ExportRequest

if TYPE_CHECKING:
    import onnx_ir as ir

OPERATORS = ("Attention", *fused_operators.OPERATORS)  # of opset 23; not every parser has them
LARGEST = float(np.finfo(np.float16).max)
_KINDS = {"fp16": "FLOAT16", "int8": "FLOAT16", "int8-weight": "FLOAT16", "bf16": "BFLOAT16"}


@dataclass(frozen=True)
class Graph:
    """What is to be told of a graph. `kept_float`: "node: why", of those that stay in float32 in a graph of half types.

    `products` are None where nothing is quantized. `seconds` by step: graph, prove, overflow, quantize, cast, write.
    """

    kept_float: tuple[str, ...]
    products: Products | None
    seconds: Mapping[str, float]
    notes: tuple[str, ...]


def write_graph(request: ExportRequest, model_onnx: Path, lacking: Collection[str] = ()) -> Graph:
    """Writes the request's checkpoint at its precision: fp32, fp16, bf16, int8 or int8-weight.

    `lacking`: those of OPERATORS that the engine's parser does not have; they are spelled out.

    Pictures: pixel_values float32 [batch, C, H, W].
    Text generation: input_ids, attention_mask and position_ids (where the model takes them) int64,
    past_key_values.N.key and .value [batch, heads, past, size] in the graph's own type, past 0 included; out come
    logits float32 [batch, new, V] and present.N.key and .value. Encoders: as traced_graph.trace_encoder, float32
    answers. Raises BuildError for what cannot be traced, quantized as asked, or typed.
    """
    check_policy(request.precision, request.policy)
    seconds: dict[str, float] = {}
    with timed(seconds, "graph"):
        float_graph = made_once(request.scratch, partial(_write_float, request, lacking))
        model = load_prepared(float_graph)
    if request.precision in SCHEMES:
        with timed(seconds, "prove"):
            prove(float_graph, request, _write_runnable)
    return typed(
        model,
        model_onnx,
        request,
        seconds,
        partial(_overflowing, request, float_graph),
        partial(_quantized, request=request),
    )


def typed(
    model: ir.Model,
    model_onnx: Path,
    request: ExportRequest,
    seconds: dict[str, float],
    overflow: Callable[[], Mapping[str, float]],
    rounded: Callable[[ir.Model], tuple[Products, tuple[str, ...]]],
) -> Graph:
    """Writes a prepared float32 graph at the request's precision. `seconds` gets what each step took.

    `overflow` finds the values that float16 cannot hold; `rounded` is quantize of this graph. Raises BuildError.
    """
    notes = notes_of(model)
    kind, products = _KINDS.get(request.precision), None
    kept: tuple[str, ...] = ()
    beyond: Mapping[str, float] = {}
    if kind == "FLOAT16":
        with timed(seconds, "overflow"):
            beyond = overflow()
            if request.calibration is None:
                notes.append("activations were not checked for overflow of float16: there was no calibration text")
    if request.precision in SCHEMES:
        with timed(seconds, "quantize"):
            products, said = rounded(model)
            notes += said
    # Only in half precision there are kernels for the operator.
    write_out(model, lambda node: kind is None or any(value and value.name in beyond for value in _around(node)))
    if kind is not None:
        with timed(seconds, "cast"):
            # Pixel values come in float32, as every processor makes them.
            kept = lower(model, kind, beyond, FORMS[request.checkpoint.task].inputs == "pixels")
        notes += _told(kept, beyond)
    with timed(seconds, "write"):
        shell.check(model)
        save_graph(model, model_onnx)
    return Graph(kept, products, seconds, tuple(notes))


def _write_float(request: ExportRequest, lacking: Collection[str], model: Path) -> None:
    checkpoint = request.checkpoint
    how: dict[str, Any] = {
        "trust_remote_code": checkpoint.trust_remote_code,
        "attention": None if "Attention" in lacking else KERNEL_SIZES,
        "fuse": partial(fused_operators.simplify, lacking=lacking),
        "limit": 0,  # the weights in a file of their own: it is mapped, not read, by all that follows
        "traces": request.traces,
    }
    if checkpoint.task == GENERATION:
        trace_causal_lm(checkpoint.path, model, **how)
    else:
        trace_encoder(checkpoint.path, checkpoint.task, model, **how)


def load_prepared(float_graph: Path) -> ir.Model:
    """The float32 graph, prepared, its small tensors in memory."""
    model = load_graph(float_graph)
    prepare(model)
    return model


def _write_runnable(float_graph: Path, path: Path) -> None:
    """The graph as the float32 artifact of it is proven: with Attention written out."""
    model = load_prepared(float_graph)
    write_out(model)
    save_graph(model, path, limit=0)


def _overflowing(request: ExportRequest, float_graph: Path) -> dict[str, float]:
    """The values that float16 cannot hold on the calibration windows."""
    windows = np.load(request.calibration / "windows.npy") if request.calibration else None
    return overflowing(load_prepared(float_graph), windows, request.scratch, request.threads, LARGEST)


def _around(node: ir.Node) -> list[ir.Value | None]:
    return [*node.inputs, *node.outputs]


def _told(kept: tuple[str, ...], beyond: Mapping[str, float]) -> list[str]:
    count = sum(OVERFLOW in line for line in kept)
    if not count:
        return []
    worst = sorted(beyond, key=lambda name: -beyond[name])[:3]
    told = ", ".join(f"{name} reaches {beyond[name]:.3g}" for name in worst)
    return [f"{count} operators stay in float32, for float16 cannot hold their tensors on calibration text: {told}"]


def _quantized(model: ir.Model, request: ExportRequest) -> tuple[Products, tuple[str, ...]]:
    checkpoint = request.checkpoint
    modules = module_rows(load_model(checkpoint.path, checkpoint.task, checkpoint.trust_remote_code))
    return round_and_clean(model, request.policy, modules, FORMS[checkpoint.task].answers == "vocabulary")


def round_and_clean(
    model: ir.Model, policy: Mapping[str, Scheme | None] | None, modules: Mapping[str, Rows], decoder: bool
) -> tuple[Products, tuple[str, ...]]:
    """quantize, and the graph without what it leaves behind."""
    from onnx_ir.passes import common

    result = quantize(model, policy, modules, decoder)
    common.RemoveUnusedNodesPass()(model)
    model.graph.sort()
    return result


@contextmanager
def timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - start
