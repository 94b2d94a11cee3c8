"""The graph that was handed to TensorRT, run by ONNX Runtime on the CPU, where no GPU can run its engine.

Requests are held to the engine's profile, so that what passes here is what the engine takes.
"""

from __future__ import annotations

from pathlib import Path

from exporter.targets.onnx_session import OnnxDecoder, OnnxRunner
from exporter.targets.tensorrt_profile import Profile
from exporter.types import Floats, Ids

ENGINE = "onnxruntime-cpu (graph handed to TensorRT)"


class EncoderProof(OnnxRunner):
    """A graph without a cache. `untimed`: why the engine itself does not run here."""

    def __init__(self, model: Path, threads: int, profile: Profile, untimed: str) -> None:
        super().__init__(model, threads)
        self.engine, self.untimed, self._profile = ENGINE, untimed, profile

    def batch(self, ids: Ids, mask: Ids) -> Floats:
        return self._profile.batched(ids, mask, super().batch)


class DecoderProof(OnnxDecoder):
    """A graph with a KV cache; the rest is as above."""

    def __init__(self, model: Path, threads: int, profile: Profile, untimed: str) -> None:
        super().__init__(model, threads)
        self.engine, self.untimed, self._profile = ENGINE, untimed, profile

    def batch(self, ids: Ids, mask: Ids) -> Floats:
        return self._profile.batched(ids, mask, super().batch)

    def _extend(self, ids: Ids) -> Floats:
        self._profile.admit(self._length + len(ids))
        return super()._extend(ids)
