"""An ONNX graph opened in ONNX Runtime on the CPU; device_session.py has the GPU's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from exporter.device import CPU
from exporter.form import PIXELS, SAMPLES, SPECTROGRAM
from exporter.runner import Floats, Ids, Sample, rows_of_states
from exporter.targets.onnx_graph.not_finite import first_not_finite


def usual_inputs(ids: Sample, mask: Ids, segments: Ids | None = None) -> dict[str, Sample]:
    """What a transformer's graph may take, by name, for [B, T] new ids, a mask [B, past + T] and [B, T] segments; or
    for pictures [B, C, H, W]; or for sounds [B, T], float32; or for spectrograms [B, mel, frames]."""
    if ids.ndim == 4:
        return {PIXELS: ids}
    if ids.dtype.kind == "f":
        return {SAMPLES if ids.ndim == 2 else SPECTROGRAM: ids}
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, -ids.shape[1] :],
        "token_type_ids": np.zeros_like(ids) if segments is None else segments,
    }


def joined(answers: Sequence[Any]) -> Floats:
    """A graph's answer as float32; several of them as one, with an axis for them at the end."""
    answer: Floats = (answers[0] if len(answers) == 1 else np.stack(answers, -1)).astype(np.float32, copy=False)
    return rows_of_states(answer)


def options_of(threads: int) -> Any:
    """How every session is opened: onnxruntime.SessionOptions."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A plain allocation for the weights: the arena would round up to the next power of two.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    return options


def bind(session: Any, names: Sequence[str], feeds: Mapping[str, Any], device: str, number: int) -> Any:
    """A call's inputs and its named outputs, on a device. `feeds` are arrays, or OrtValues that an earlier call left.

    By ONNX Runtime's I/O binding (https://onnxruntime.ai/docs/performance/tune-performance/iobinding.html).
    """
    from onnxruntime import OrtValue

    binding = session.io_binding()
    for name, value in feeds.items():
        if isinstance(value, np.ndarray) and not value.size:  # the cache before its first token
            binding.bind_cpu_input(name, value)
            continue
        if isinstance(value, np.ndarray):
            value = OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value), device, number)
        binding.bind_ortvalue_input(name, value)
    for name in names:
        binding.bind_output(name, device, number)
    return binding


class OnnxRunner:
    """An encoder's session, and what a decoder's has in common with it."""

    def __init__(self, model: Path, threads: int, session: Any = None) -> None:
        """`session`: one that is open, on whatever device; None: it is opened on the CPU."""
        import onnxruntime

        self._model, self._threads = model, threads
        if session is None:
            session = onnxruntime.InferenceSession(str(model), options_of(threads), providers=["CPUExecutionProvider"])
        self._session = session
        provider = self._session.get_providers()[0]
        self.engine = f"onnxruntime {onnxruntime.__version__} {provider}"
        self._inputs = {value.name: value for value in self._session.get_inputs()}
        self._outputs = [value.name for value in self._session.get_outputs()]
        self._answers = [name for name in self._outputs if not name.startswith("present.")]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        del self._session

    def logits(self, ids: Sample) -> Floats:
        out = self.batch(ids[None], np.ones((1, len(ids)), np.int64))
        return out[0] if out.ndim == 3 and ids.ndim == 1 else out

    def segmented(self, ids: Ids, segments: Ids) -> Floats:
        out = self._answer(self._feeds(ids[None], np.ones_like(ids)[None], segments[None]))
        return out[0] if out.ndim == 3 else out

    def batch(self, ids: Sample, mask: Ids) -> Floats:
        return self._answer(self._feeds(ids, mask))

    def _answer(self, feeds: dict[str, Any]) -> Floats:
        return joined(self._session.run(self._answers, feeds))

    def first_not_finite(self, ids: Sample) -> str | None:
        """What is NaN or infinite first on [T] token ids; None where it cannot be found any more."""
        if not self._model.is_file():  # one that was made to be opened alone
            return None
        feeds = self._feeds(ids[None], np.ones((1, len(ids)), np.int64))
        return first_not_finite(self._model, feeds, self._threads)

    def _feeds(self, ids: Sample, mask: Ids, segments: Ids | None = None) -> dict[str, Any]:
        """What the graph takes of the usual inputs, for [B, T] new ids and a mask [B, past + T]."""
        usual = usual_inputs(ids, mask, segments)
        return {name: np.ascontiguousarray(value) for name, value in usual.items() if name in self._inputs}


class OnnxDecoder(OnnxRunner):
    """A text-generation session. The cache stays in ONNX Runtime's memory between steps."""

    def __init__(self, model: Path, threads: int, session: Any = None) -> None:
        super().__init__(model, threads, session)
        self._past = [name for name in self._inputs if name.startswith("past_key_values.")]
        self._present = [name.replace("past_key_values", "present") for name in self._past]
        self._cache: list[Any] = []
        self._length = 0

    def _feeds(self, ids: Sample, mask: Ids, segments: Ids | None = None) -> dict[str, Any]:
        feeds = super()._feeds(ids, mask, segments)
        return feeds | {name: self._empty(name, ids.shape[0]) for name in self._past}

    def _empty(self, name: str, batch: int) -> Any:
        value = self._inputs[name]
        kind = np.float16 if value.type == "tensor(float16)" else np.float32
        return np.zeros((batch, value.shape[1], 0, value.shape[3]), kind)

    def prefill(self, ids: Ids) -> Floats:
        last: Floats = self.prefill_batch(ids[None])[0]
        return last

    def step(self, token: int) -> Floats:
        last: Floats = self.step_batch(np.array([token], np.int64))[0]
        return last

    def prefill_batch(self, ids: Ids) -> Floats:
        self._length = 0
        self._cache = [self._empty(name, len(ids)) for name in self._past]
        return self._extend(ids)

    def step_batch(self, tokens: Ids) -> Floats:
        return self._extend(tokens[:, None])

    def _extend(self, ids: Ids) -> Floats:
        """The last logits [B, V] after [B, T] more ids."""
        self._length += ids.shape[1]
        mask = np.ones((len(ids), self._length), np.int64)
        feeds = super()._feeds(ids, mask) | dict(zip(self._past, self._cache, strict=True))
        logits, *self._cache = self._values([self._outputs[0], *self._present], feeds)
        last: Floats = logits.numpy()[:, -1].astype(np.float32, copy=False)
        return last

    def _values(self, names: list[str], feeds: dict[str, Any]) -> list[Any]:
        """The named outputs as OrtValues; `feeds` are arrays, or OrtValues of an earlier call."""
        binding = bind(self._session, names, feeds, CPU, 0)
        self._session.run_with_iobinding(binding)
        values: list[Any] = binding.get_outputs()
        return values
