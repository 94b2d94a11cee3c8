"""An encoder's and a decoder's graph opened in ONNX Runtime on the CPU, as one runner."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np

from exporter.device import CPU
from exporter.runner import Floats, Ids, Sample
from exporter.targets.onnx_graph.session import OnnxRunner, bind

ENCODER, DECODER = "encoder_model.onnx", "decoder_model_merged.onnx"  # as optimum and transformers.js call them


class OnnxEncoderDecoder:
    """Both caches stay in ONNX Runtime's memory between steps; that of the source is made by the first."""

    def __init__(self, encoder: OnnxRunner, decoder: DecoderGraph) -> None:
        self._encoder, self._decoder = encoder, decoder
        self.engine = encoder.engine
        self._states: Any = None
        self._mask = np.zeros((1, 0), np.int64)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._encoder.__exit__(*exc)
        self._decoder.__exit__(*exc)

    def encode(self, ids: Sample) -> Floats:
        self._mask = np.ones((1, len(ids)), np.int64)
        self._states = self._encoder.batch(ids[None], self._mask)
        states: Floats = self._states[0]
        return states

    def asked(self, source: Sample, ids: Ids) -> dict[str, Sample]:
        """What the decoder's graph is fed where it is asked for [1, T] ids after a source, by the inputs' names."""
        states, mask = self.encode(source)[None], np.ones((1, len(source)), np.int64)
        return {"input_ids": ids, "encoder_hidden_states": states, "encoder_attention_mask": mask}

    def logits(self, ids: Ids) -> Floats:
        answers: Floats = self._decoder.answers(ids[None], self._mask, self._states)[0]
        return answers

    def paired(self, sources: Sample, mask: Ids, ids: Ids) -> Floats:
        return self._decoder.answers(ids, mask, self._encoder.batch(sources, mask))

    def prefill(self, ids: Ids) -> Floats:
        return self._decoder.begin(ids, self._mask, self._states)

    def step(self, token: int) -> Floats:
        return self._decoder.step(token, self._mask, self._states)


def open_pair(folder: Path, threads: int) -> OnnxEncoderDecoder:
    """The two graphs in a folder, by the names that clients know them by."""
    return OnnxEncoderDecoder(OnnxRunner(folder / ENCODER, threads), DecoderGraph(folder / DECODER, threads))


class DecoderGraph(OnnxRunner):
    """The decoder's session: an encoder's states are inputs as any other."""

    def __init__(self, model: Path, threads: int) -> None:
        super().__init__(model, threads)
        self._past = [name for name in self._inputs if name.startswith("past_key_values.")]
        self._present = [name.replace("past_key_values", "present") for name in self._past]
        self._own = [name for name in self._present if ".decoder." in name]  # those that grow
        self._cache: dict[str, Any] = {}

    def answers(self, ids: Ids, mask: Ids, states: Floats) -> Floats:
        """[B, T, V] of [B, T] ids, without what was read before."""
        return self._answer(self._feeds_of(ids, mask, states) | self.empty(len(ids)))

    def begin(self, ids: Ids, mask: Ids, states: Floats) -> Floats:
        """The last one's answer [V] to [T] ids, which the cache has alone from here on, with the source."""
        self._cache = self.empty(1)
        return self._extend(ids, mask, states, self._present)

    def step(self, token: int, mask: Ids, states: Floats) -> Floats:
        return self._extend(np.array([token], np.int64), mask, states, self._own)

    def empty(self, batch: int) -> dict[str, Any]:
        """A cache of nothing."""
        shapes = {name: self._inputs[name].shape for name in self._past}
        return {name: np.zeros((batch, shape[1], 0, shape[3]), np.float32) for name, shape in shapes.items()}

    def _feeds_of(self, ids: Ids, mask: Ids, states: Floats) -> dict[str, Any]:
        feeds = {"input_ids": ids, "encoder_attention_mask": mask, "encoder_hidden_states": states}
        return {name: np.ascontiguousarray(value) for name, value in feeds.items() if name in self._inputs}

    def _extend(self, ids: Ids, mask: Ids, states: Floats, changed: list[str]) -> Floats:
        feeds = self._feeds_of(ids[None], mask, states) | self._cache
        binding = bind(self._session, [self._outputs[0], *changed], feeds, CPU, 0)
        self._session.run_with_iobinding(binding)
        logits, *values = binding.get_outputs()
        names = [name.replace("present", "past_key_values") for name in changed]
        self._cache |= dict(zip(names, values, strict=True))
        last: Floats = logits.numpy()[0, -1].astype(np.float32, copy=False)
        return last
