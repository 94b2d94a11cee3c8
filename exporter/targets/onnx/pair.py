"""The two graphs of an encoder-decoder's folder, opened as one runner, and what their weights hold.

optimum and transformers.js look for onnx/encoder_model.onnx and onnx/decoder_model_merged.onnx.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from exporter.errors import BuildError
from exporter.targets.onnx.bf16 import ENGINE, UNTIMED, need_packages
from exporter.targets.onnx_graph import encoder_decoder_session as names
from exporter.targets.onnx_graph import held
from exporter.targets.onnx_graph.encoder_decoder_session import DecoderGraph, OnnxEncoderDecoder, open_pair
from exporter.targets.onnx_graph.rounding import proof_of
from exporter.targets.onnx_graph.session import OnnxRunner
from exporter.targets.onnx_graph.zeros import zero_counts
from exporter.types import Weight

HALVES = ENCODER, DECODER = tuple(f"onnx/{name}" for name in (names.ENCODER, names.DECODER))


def open_onnx_pair(folder: Path, threads: int, variant: str, gpu: int | None) -> OnnxEncoderDecoder:
    """The runner of an artifact's folder. Raises BuildError on a GPU."""
    if gpu is not None:
        raise BuildError("both graphs of an encoder-decoder are run on the CPU alone here yet: give --device cpu")
    if variant != "onnx:bf16":
        return open_pair((folder / ENCODER).parent, threads)
    need_packages()
    with proof_of(folder / ENCODER, folder) as proof:
        encoder = OnnxRunner(proof, threads)
    with proof_of(folder / DECODER, folder) as proof:
        return PairStandIn(encoder, DecoderGraph(proof, threads))


class PairStandIn(OnnxEncoderDecoder):
    """The bfloat16 graphs' answers where no GPU runs them."""

    untimed = UNTIMED

    def __init__(self, encoder: OnnxRunner, decoder: DecoderGraph) -> None:
        super().__init__(encoder, decoder)
        self.engine = ENGINE


def weights_of_pair(folder: Path) -> list[Weight]:
    """The weight matrices of both graphs; what both hold, such as an embedding, is in both."""
    return [replace(one, name=_named(name, one.name)) for name in HALVES for one in held.weights_of(folder / name)]


def zero_counts_of_pair(folder: Path) -> dict[str, int]:
    """The zeros of both graphs, by the same names."""
    counts = {name: zero_counts(folder / name) for name in HALVES}
    return {_named(name, weight): count for name, own in counts.items() for weight, count in own.items()}


def _named(half_of: str, weight: str) -> str:
    return f"{Path(half_of).stem.partition('_')[0]}/{weight}"
