"""Encoder-decoders: two float32 graphs, and the precision's pass over each. pair.py opens them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporter.checkpoint.linear import shared_weights
from exporter.checkpoint.speech import Transcribing, transcribing
from exporter.form import FORMS
from exporter.runner import Sample
from exporter.targets.onnx.half import overflowing
from exporter.targets.onnx.kernels import Labels, Product, describe, of_half, weight_products
from exporter.targets.onnx.layout import configure
from exporter.targets.onnx.pair import DECODER, ENCODER, HALVES
from exporter.targets.onnx.parts import Needs, Told, at_precision, needs_of_all
from exporter.targets.onnx.quantize import SCHEMES, check_policy, quantize_by_policy
from exporter.targets.onnx_graph.encoder_decoder import trace_encoder_decoder
from exporter.targets.onnx_graph.encoder_decoder_session import OnnxEncoderDecoder, open_pair
from exporter.targets.onnx_graph.file import load_graph, made_once, save_graph
from exporter.targets.onnx_graph.float_proof import prove
from exporter.targets.onnx_graph.modules import rows_of_halves
from exporter.targets.onnx_graph.traced import load_model
from exporter.tasks.speech_recognition import transcript
from exporter.types import Exported, ExportRequest

if TYPE_CHECKING:
    import onnx_ir as ir

_SOUNDS = 4  # whose largest numbers are looked for


def refused(task: str, precision: str) -> str | None:
    """Why a precision is not made of an encoder-decoder, or None."""
    if FORMS[task].encodes and FORMS[task].inputs != "text" and precision == "int8-static":
        return (
            "ranges of static int8 are found on windows of a text, which are a source and its target to a model of "
            "texts, and this one reads sounds; int8-dynamic finds them at run time"
        )
    return None


def export_pair(request: ExportRequest, told: Told) -> Exported:
    """Writes the artifact's folder. Both float graphs are made once for all the precisions of a run.

    `told` says of tensors that float16 cannot hold what becomes of them.
    """
    check_policy(request.precision, request.policy)
    floats = made_once(request.scratch, partial(_write_floats, request)).parent
    if request.precision in SCHEMES:
        prove(floats, request)
    hears = FORMS[request.checkpoint.task].inputs != "text"  # and its encoder begins with convolutions
    notes: list[str] = []
    needs: list[Needs] = []
    products: list[Product] = []
    labels = Labels()
    by_policy = _by_policy(request)
    for name in HALVES:
        model, said, least = at_precision(
            load_graph(floats / Path(name).name),
            request,
            partial(_overflowing, request, floats, name),
            told,
            # An encoder's feed-forward is as a decoder's in these models: T5's have the largest outliers there are.
            decoder=True,
            pictures=hears and name == ENCODER,
            by_policy=by_policy.get(name),
        )
        (request.folder / name).parent.mkdir(exist_ok=True)
        save_graph(model, request.folder / name)
        notes += said
        needs.append(least)
        if request.precision == "int8-static":
            made = weight_products(request.folder / name, request.scratch)
            found, called = of_half(name, made, by_policy[name].labels)
            products += found
            labels = Labels({**labels.modules, **called.modules}, called.head)
    if request.precision == "int8-static":
        notes.append(describe(products, labels))
    weights = configure(request.checkpoint.path, request.folder, request.precision != "bf16")
    return Exported(weights, tuple(dict.fromkeys(notes)), graph=needs_of_all(needs))


class _ByPolicy:
    """What a policy makes of one half; `labels`: how its products are called then."""

    def __init__(self, quantize: Callable[[ir.Model], tuple[list[str], Labels]]) -> None:
        self._quantize, self.labels = quantize, Labels()

    def __call__(self, model: ir.Model) -> list[str]:
        notes, self.labels = self._quantize(model)
        return notes


def _by_policy(request: ExportRequest) -> dict[str, _ByPolicy]:
    """What a policy makes of each half, whose layers have the names of the whole model; {} where there is none."""
    policy, checkpoint = request.policy, request.checkpoint
    if policy is None:
        return {}
    model = load_model(checkpoint.path, checkpoint.task, checkpoint.trust_remote_code)
    halves, shared = rows_of_halves(model), shared_weights(model)
    named = {name for own in halves for name in own}
    found: dict[str, _ByPolicy] = {}
    for half_of, own in zip(HALVES, halves, strict=True):
        mine = {name: scheme for name, scheme in policy.items() if name in own}
        last = half_of == DECODER
        # The embedding that a head in float shares is in float in the other half too, where nothing multiplies with it.
        tables = last or all(policy.get(name) is not None for name in named if name in shared)
        found[half_of] = _ByPolicy(partial(quantize_by_policy, policy=mine, modules=own, decoder=last, tables=tables))
    return found


def _write_floats(request: ExportRequest, model_onnx: Path) -> None:
    """Both halves in the folder of `model_onnx`, the weights in files of their own: they are mapped, not read."""
    places = (model_onnx.parent / Path(name).name for name in HALVES)
    model, trust = request.checkpoint, request.checkpoint.trust_remote_code
    trace_encoder_decoder(model.path, model.task, *places, trust_remote_code=trust, limit=0, traces=request.traces)


def _overflowing(request: ExportRequest, floats: Path, name: str) -> dict[str, float]:
    """What float16 cannot hold of one half, on the calibration's windows: each is read as a source, and as its text.

    Of sounds, some of which are enough, the text is what the float graphs themselves make of one.
    """
    windows = np.load(request.calibration / "windows.npy") if request.calibration else None
    graph = load_graph(floats / Path(name).name)
    hears = FORMS[request.checkpoint.task].inputs == "spectrogram"
    some = windows[:_SOUNDS] if hears and windows is not None else windows
    if name == ENCODER or some is None:
        return overflowing(graph, some, request.scratch, request.threads)
    how = transcribing(request.checkpoint.path) if hears else None
    with open_pair(floats, request.threads) as pair:
        return overflowing(graph, some, request.scratch, request.threads, partial(_decoded, pair, how))


def _decoded(pair: OnnxEncoderDecoder, how: Transcribing | None, source: Sample) -> dict[str, Sample]:
    """What the decoder is given after a source."""
    if how is None:
        ids = source[None]
    else:
        prompt, text = transcript(pair, how, source)
        ids = np.array([[how.start, *prompt, *text[:-1]]], np.int64)
    return pair.asked(source, ids)
