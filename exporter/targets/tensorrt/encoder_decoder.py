"""An encoder-decoder's two graphs: each is typed as the one graph of other models is, in a folder of its own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporter.targets.onnx_graph import encoder_decoder_session as names
from exporter.targets.onnx_graph.encoder_decoder import trace_encoder_decoder
from exporter.targets.onnx_graph.encoder_decoder_session import OnnxEncoderDecoder, open_pair
from exporter.targets.onnx_graph.file import made_once, save_graph
from exporter.targets.onnx_graph.float_proof import prove
from exporter.targets.onnx_graph.modules import Rows, rows_of_halves
from exporter.targets.onnx_graph.traced import load_model
from exporter.targets.tensorrt.graph import LARGEST, Graph, load_prepared, round_and_clean, timed, typed
from exporter.targets.tensorrt.overflow import overflowing
from exporter.targets.tensorrt.parts import DECODER, ENCODER, MODEL
from exporter.targets.tensorrt.quantize import SCHEMES, Products, check_policy
from exporter.types import ExportRequest

if TYPE_CHECKING:
    import onnx_ir as ir

    from exporter.runner import Sample

_FILES = {ENCODER: names.ENCODER, DECODER: names.DECODER}  # of the float32 graphs, as they are traced


def write_pair(request: ExportRequest) -> dict[str, Graph]:
    """Writes FOLDER/encoder/model.onnx and FOLDER/decoder/model.onnx at the request's precision; what is told of each.

    Inputs and outputs as trace_encoder_decoder has them, the KV cache of both attentions in the graph's own type. What
    an encoder answers is what a decoder takes: float32 at every precision. Raises BuildError.
    """
    check_policy(request.precision, request.policy)
    seconds: dict[str, dict[str, float]] = {ENCODER: {}, DECODER: {}}
    with timed(seconds[ENCODER], "graph"):  # both, and their proof
        floats = made_once(request.scratch, partial(_write_floats, request)).parent
    modules: dict[str, dict[str, Rows]] = {ENCODER: {}, DECODER: {}}
    if request.precision in SCHEMES:
        with timed(seconds[ENCODER], "prove"):
            prove(floats, request, _write_runnable)
        model, trust = request.checkpoint, request.checkpoint.trust_remote_code
        halves = rows_of_halves(load_model(model.path, model.task, trust))
        modules = dict(zip((ENCODER, DECODER), halves, strict=True))
    written = {}
    for part in (ENCODER, DECODER):
        (request.folder / part).mkdir(exist_ok=True)
        written[part] = typed(
            load_prepared(floats / _FILES[part]),
            request.folder / part / MODEL,
            request,
            seconds[part],
            partial(_overflowing, request, floats, part),
            partial(_rounded, request=request, modules=modules[part], part=part),
        )
    return written


def _rounded(
    model: ir.Model, request: ExportRequest, modules: dict[str, Rows], part: str
) -> tuple[Products, tuple[str, ...]]:
    """One graph by those of the policy's layers that it has."""
    policy = request.policy
    own = None if policy is None else {name: scheme for name, scheme in policy.items() if name in modules}
    return round_and_clean(model, own, modules, part == DECODER)


def _write_floats(request: ExportRequest, model_onnx: Path) -> None:
    """Both graphs in the folder of `model_onnx`, the weights in files of their own: they are mapped, not read."""
    places = (model_onnx.parent / name for name in _FILES.values())
    model, trust = request.checkpoint, request.checkpoint.trust_remote_code
    trace_encoder_decoder(model.path, model.task, *places, trust_remote_code=trust, limit=0, traces=request.traces)


def _write_runnable(floats: Path, folder: Path) -> None:
    """Both graphs as the float32 artifact of them is proven."""
    folder.mkdir()
    for name in _FILES.values():
        save_graph(load_prepared(floats / name), folder / name, limit=0)


def _overflowing(request: ExportRequest, floats: Path, part: str) -> dict[str, float]:
    """What float16 cannot hold of one graph, on the calibration's windows: each is a source, and its own text."""
    windows = np.load(request.calibration / "windows.npy") if request.calibration else None
    found = partial(
        overflowing, load_prepared(floats / _FILES[part]), windows, request.scratch, request.threads, LARGEST
    )
    if part == ENCODER or windows is None:
        return found()
    with open_pair(floats, request.threads) as pair:
        return found(partial(_decoded, pair))


def _decoded(pair: OnnxEncoderDecoder, source: Sample) -> dict[str, Sample]:
    return pair.asked(source, source[None])
