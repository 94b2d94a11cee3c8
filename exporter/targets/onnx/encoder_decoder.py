"""Encoder-decoders: two float32 graphs, and the precision's pass over each. pair.py opens them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.checkpoint.linear import shared_weights
from exporter.form import FORMS
from exporter.targets.onnx.bf16 import bfloat16_graph
from exporter.targets.onnx.half import half, overflowing
from exporter.targets.onnx.kernels import Labels, Product, describe, of_half, weight_products
from exporter.targets.onnx.layout import configure
from exporter.targets.onnx.pair import DECODER, ENCODER, HALVES
from exporter.targets.onnx.quantize import SCHEMES, check_policy, quantize_by_policy, quantize_by_rule
from exporter.targets.onnx_graph import shell, versions
from exporter.targets.onnx_graph.encoder_decoder import trace_encoder_decoder
from exporter.targets.onnx_graph.encoder_decoder_session import open_pair
from exporter.targets.onnx_graph.file import load_graph, made_once, save_graph
from exporter.targets.onnx_graph.float_proof import prove
from exporter.targets.onnx_graph.half_scales import halve_scales
from exporter.targets.onnx_graph.joined_products import join_products
from exporter.targets.onnx_graph.modules import module_rows
from exporter.targets.onnx_graph.traced import load_model, notes_of
from exporter.types import Exported, ExportRequest

if TYPE_CHECKING:
    import onnx_ir as ir

    _Quantize = Callable[[ir.Model], tuple[list[str], Labels]]


def refused(task: str, precision: str) -> str | None:
    """Why a precision is not made of an encoder-decoder, or None."""
    if FORMS[task].encodes and FORMS[task].inputs != "text" and precision == "int8-static":
        return (
            "ranges of static int8 are found on windows of a text, which are a source and its target to a model of "
            "texts, and this one reads sounds; int8-dynamic finds them at run time"
        )
    return None


def export_pair(request: ExportRequest, told: Callable[[Mapping[str, float]], list[str]]) -> Exported:
    """Writes the artifact's folder. Both float graphs are made once for all the precisions of a run.

    `told` says of tensors that float16 cannot hold what becomes of them.
    """
    check_policy(request.precision, request.policy)
    floats = made_once(request.scratch, partial(_write_floats, request)).parent
    if request.precision in SCHEMES:
        prove(floats, request)
    notes: list[str] = []
    needs: list[Mapping[str, Any]] = []
    products: list[Product] = []
    labels = called = Labels()
    by_policy = _by_policy(request)
    for name in HALVES:
        model = load_graph(floats / Path(name).name)
        notes += notes_of(model)
        if name in by_policy:
            said, called = by_policy[name](model)
            notes += said
        elif request.precision == "fp16":
            beyond = _overflowing(request, floats, name)
            model = half(model, beyond)
            notes += told(beyond)
        elif request.precision == "bf16":
            model = bfloat16_graph(model)
        elif request.precision in SCHEMES:
            # An encoder's feed-forward is as a decoder's in these models: T5's have the largest outliers there are.
            notes += quantize_by_rule(model, request.precision, decoder=True)
        if request.precision not in ("int8-static", "bf16"):  # whose kernels are told by their weights' names
            join_products(model)
        needs.append(versions.fit(model, request.options.min_onnxruntime if request.options else None))
        halve_scales(model)
        shell.check(model)
        (request.folder / name).parent.mkdir(exist_ok=True)
        save_graph(model, request.folder / name)
        if request.precision == "int8-static":
            found, called = of_half(name, weight_products(request.folder / name, request.scratch), called)
            products += found
            labels = Labels({**labels.modules, **called.modules}, called.head)
    if request.precision == "int8-static":
        notes.append(describe(products, labels))
    weights = configure(request.checkpoint.path, request.folder, request.precision != "bf16")
    return Exported(weights, tuple(dict.fromkeys(notes)), graph=_both(needs))


def _by_policy(request: ExportRequest) -> dict[str, _Quantize]:
    """What a policy makes of each half, whose layers have the names of the whole model; {} where there is none."""
    policy, checkpoint = request.policy, request.checkpoint
    if policy is None:
        return {}
    model = load_model(checkpoint.path, checkpoint.task, checkpoint.trust_remote_code)
    rows, inside, shared = module_rows(model), {*model.get_encoder().modules()}, shared_weights(model)
    found: dict[str, _Quantize] = {}
    for half_of in HALVES:
        own = {name: rows[name] for name in rows if (model.get_submodule(name) in inside) == (half_of == ENCODER)}
        mine = {name: scheme for name, scheme in policy.items() if name in own}
        # The embedding that a head in float shares is in float in the other half too, where nothing multiplies with it.
        tables = half_of == DECODER or all(policy.get(name) is not None for name in rows if name in shared)
        found[half_of] = partial(
            quantize_by_policy, policy=mine, modules=own, decoder=half_of == DECODER, tables=tables
        )
    return found


def _write_floats(request: ExportRequest, model_onnx: Path) -> None:
    """Both halves in the folder of `model_onnx`, the weights in files of their own: they are mapped, not read."""
    places = (model_onnx.parent / Path(name).name for name in HALVES)
    checkpoint = request.checkpoint
    trace_encoder_decoder(checkpoint.path, *places, trust_remote_code=checkpoint.trust_remote_code, limit=0)


def _overflowing(request: ExportRequest, floats: Path, name: str) -> dict[str, float]:
    """What float16 cannot hold of one half, on the calibration's windows: each is read as a source, and as its text."""
    windows = np.load(request.calibration / "windows.npy") if request.calibration else None
    graph = load_graph(floats / Path(name).name)
    if name == ENCODER or windows is None:
        return overflowing(graph, windows, request.scratch, request.threads)
    with open_pair(floats, request.threads) as pair:
        return overflowing(graph, windows, request.scratch, request.threads, pair.encode)


def _both(needs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a runtime must have to open both graphs."""
    oldest = [one["min_onnxruntime"] for one in needs]
    least = None if None in oldest else max(oldest, key=versions.number)
    because = [one["because"] for one in needs if one["min_onnxruntime"] == least]
    return {**needs[-1], "min_onnxruntime": least, "because": list(dict.fromkeys(chain(*because)))}
