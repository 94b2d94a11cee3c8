"""The graph that was handed to TensorRT, run by ONNX Runtime on the CPU, where no GPU can run its engine.

It is run as the float32 graph of onnx_graph/rounding.py, which rounds wherever the types of model.onnx do; where those
are all float32 there is nothing to round, and model.onnx itself is run. Requests are held to the engine's profile, so
that what passes here is what the engine takes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from exporter.form import FORMS, PIXELS
from exporter.runner import Floats, Ids, Sample
from exporter.targets.onnx_graph.encoder_decoder_session import DecoderGraph, OnnxEncoderDecoder
from exporter.targets.onnx_graph.rounding import proof_of
from exporter.targets.onnx_graph.session import OnnxDecoder, OnnxRunner
from exporter.targets.tensorrt.parts import DECODER, ENCODER, MODEL
from exporter.targets.tensorrt.profile import Profile
from exporter.types import GENERATION

ENGINE = "onnxruntime-cpu (graph handed to TensorRT)"


class EncoderProof(OnnxRunner):
    """A graph without a cache. `untimed`: why the engine itself does not run here."""

    def __init__(self, model: Path, threads: int, profile: Profile, untimed: str) -> None:
        super().__init__(model, threads)
        self.engine, self.untimed, self._profile = ENGINE, untimed, profile
        if PIXELS not in self._inputs:  # a picture has no length
            self.max_length = profile.length.max

    def batch(self, ids: Sample, mask: Ids) -> Floats:
        return self._profile.batched(ids, mask, super().batch)

    def segmented(self, ids: Ids, segments: Ids) -> Floats:
        self._profile.admit(len(ids))
        return super().segmented(ids, segments)


class DecoderProof(OnnxDecoder):
    """A graph with a KV cache; the rest is as above."""

    def __init__(self, model: Path, threads: int, profile: Profile, untimed: str) -> None:
        super().__init__(model, threads)
        self.engine, self.untimed, self._profile = ENGINE, untimed, profile
        self.max_length = profile.length.max

    def batch(self, ids: Sample, mask: Ids) -> Floats:
        return self._profile.batched(ids, mask, super().batch)

    def _extend(self, ids: Ids) -> Floats:
        self._profile.admit(self._length + ids.shape[1])
        return super()._extend(ids)


class PairProof(OnnxEncoderDecoder):
    """An encoder's graph and a decoder's; the rest is as above."""

    def __init__(self, encoder: EncoderProof, decoder: DecoderGraph, profile: Profile, untimed: str) -> None:
        super().__init__(encoder, decoder)
        self.engine, self.untimed, self._profile, self._length = ENGINE, untimed, profile, 0
        self.max_length = min(profile.length.max, profile.of_source().length.max)

    def logits(self, ids: Ids) -> Floats:
        self._profile.admit(len(ids))
        return super().logits(ids)

    def paired(self, sources: Sample, mask: Ids, ids: Ids) -> Floats:
        self._profile.admit(ids.shape[1])
        together, batches = super().paired, self._profile.batches(len(ids))
        return np.concatenate([together(sources[rows], mask[rows], ids[rows]) for rows in batches])

    def prefill(self, ids: Ids) -> Floats:
        self._profile.admit(len(ids))
        self._length = len(ids)
        return super().prefill(ids)

    def step(self, token: int) -> Floats:
        self._profile.admit(self._length + 1)
        self._length += 1
        return super().step(token)


def open_stand_in(folder: Path, threads: int, profile: Profile, task: str, untimed: str) -> OnnxRunner | PairProof:
    """The runner of a folder's graph, or of both. The graph that rounds is beside the folder while it is opened, and
    then gone."""
    exact = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["variant"].endswith(":fp32")
    if FORMS[task].encodes:
        with _run(folder, ENCODER, exact) as model:
            encoder = EncoderProof(model, threads, profile.of_source(), untimed)
        with _run(folder, DECODER, exact) as model:
            return PairProof(encoder, DecoderGraph(model, threads), profile, untimed)
    with _run(folder, "", exact) as model:
        return (DecoderProof if task == GENERATION else EncoderProof)(model, threads, profile, untimed)


@contextmanager
def _run(folder: Path, part: str, exact: bool) -> Iterator[Path]:
    """What is opened for one graph."""
    if exact:
        yield folder / part / MODEL
        return
    with proof_of(folder / part / MODEL, folder) as proof:
        yield proof
