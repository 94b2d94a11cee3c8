"""The graph that was handed to TensorRT, run by ONNX Runtime on the CPU, where no GPU can run its engine.

It is run as the float32 graph of onnx_graph/rounding.py, which rounds wherever the types of model.onnx do; where those
are all float32 there is nothing to round, and model.onnx itself is run. Requests are held to the engine's profile, so
that what passes here is what the engine takes.
"""

from __future__ import annotations

import json
from pathlib import Path

from exporter.form import PIXELS
from exporter.runner import Floats, Ids, Sample
from exporter.targets.onnx_graph.rounding import proof_of
from exporter.targets.onnx_graph.session import OnnxDecoder, OnnxRunner
from exporter.targets.tensorrt.profile import Profile

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


def open_stand_in(folder: Path, threads: int, profile: Profile, decoder: bool, untimed: str) -> OnnxRunner:
    """The runner of a folder's graph. The graph that rounds is beside the folder while it is opened, and then gone."""
    runner = DecoderProof if decoder else EncoderProof
    if json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["variant"].endswith(":fp32"):
        return runner(folder / "model.onnx", threads, profile, untimed)
    with proof_of(folder / "model.onnx", folder) as proof:
        return runner(proof, threads, profile, untimed)
