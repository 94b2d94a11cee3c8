"""A checkpoint run by transformers: the float32 reference, and what every target's torch artifacts are run by."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any, Self

import numpy as np

from exporter.checkpoint.model import load_model
from exporter.checkpoint.tokenizer import rows_of
from exporter.form import FED, FORMS
from exporter.runner import Floats, Ids, Sample, rows_of_states


class TorchRunner:
    """A transformers model in eval mode, on the device that it is on."""

    def __init__(self, model: Any, task: str) -> None:
        import torch

        self.engine = f"torch {torch.__version__} {str(model.dtype).removeprefix('torch.')}"
        self._torch = torch
        self._model = model.eval()
        self._device = model.device
        self._form = FORMS[task]
        self._cache: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        del self._model, self._cache

    def logits(self, ids: Sample) -> Floats:
        out = self.batch(ids[None], np.ones((1, len(ids)), np.int64))
        return out[0] if self._form.per_token else out

    def segmented(self, ids: Ids, segments: Ids) -> Floats:
        known = "token_type_ids" in signature(self._model.forward).parameters
        extra = {"token_type_ids": segments[None]} if known else {}
        out = self._floats(self._forward(ids[None], attention_mask=np.ones((1, len(ids)), np.int64), **extra))
        return out[0] if self._form.per_token else out

    def batch(self, ids: Sample, mask: Ids) -> Floats:
        if self._form.inputs in FED:
            return self._floats(self._sensed(ids))
        extra = {"use_cache": False} if self._form.cached else {}
        return self._floats(self._forward(ids, attention_mask=mask, **extra))

    def parameters(self) -> int:
        """How many numbers were trained; a tied weight counts once."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    def rows(self) -> int:
        return rows_of(self._model)

    def _forward(self, ids: Ids, **inputs: Any) -> Any:
        """The model's outputs, on its device; inputs that are arrays are put there."""
        inputs = {
            name: self._there(value) if isinstance(value, np.ndarray) else value for name, value in inputs.items()
        }
        with self._torch.inference_mode():
            return self._call(input_ids=self._there(ids), **inputs)

    def _sensed(self, values: Sample) -> Any:
        """The model's outputs of pictures [B, C, H, W] or sounds [B, T], in its own dtype as clients feed them."""
        with self._torch.inference_mode():
            return self._call(**{FED[self._form.inputs]: self._there(values).to(self._model.dtype)})

    def _call(self, **inputs: Any) -> Any:
        return self._model(**inputs)

    def _there(self, array: Sample) -> Any:
        return self._torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def _floats(self, out: Any) -> Floats:
        tensors = [out[name] for name in self._form.outputs]
        tensor = tensors[0] if len(tensors) == 1 else self._torch.stack(tensors, -1)
        result: Floats = tensor.float().cpu().numpy()
        return rows_of_states(result) if self._form.answers == "states" else result


class TorchDecoder(TorchRunner):
    """A text-generation model, with transformers' own KV cache."""

    def prefill(self, ids: Ids) -> Floats:
        last: Floats = self.prefill_batch(ids[None])[0]
        return last

    def step(self, token: int) -> Floats:
        last: Floats = self.step_batch(np.array([token]))[0]
        return last

    def prefill_batch(self, ids: Ids) -> Floats:
        out = self._forward(ids, use_cache=True)
        self._cache = out.past_key_values
        return self._last(out)

    def step_batch(self, tokens: Ids) -> Floats:
        return self._last(self._forward(tokens[:, None], use_cache=True, past_key_values=self._cache))

    def _last(self, out: Any) -> Floats:
        last: Floats = out.logits[:, -1].float().cpu().numpy()
        return last


def open_checkpoint(
    path: Path, task: str, threads: int, dtype: str = "float32", trust: bool = False, gpu: int | None = None
) -> TorchRunner:
    """A checkpoint's folder as a runner: how the reference is opened. `gpu`: the GPU's number; None: the CPU."""
    import torch

    torch.set_num_threads(threads)
    return runner_of(load_model(path, task, dtype, trust), task, gpu)


def runner_of(model: Any, task: str, gpu: int | None) -> TorchRunner:
    """A loaded model's runner. On a GPU float32 stays float32: without TF32, which has 10 bits of its 23."""
    from exporter.checkpoint.encoder_decoder import TorchEncoderDecoder
    from exporter.checkpoint.two_towers import TorchTowers

    if gpu is None:
        if FORMS[task].encodes:
            return TorchEncoderDecoder(model, task)
        if FORMS[task].matches:
            return TorchTowers(model, task)
        return (TorchDecoder if FORMS[task].cached else TorchRunner)(model, task)
    import torch

    from exporter.checkpoint.on_cuda import CudaTorchDecoder, CudaTorchRunner

    torch.cuda.set_device(gpu)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if FORMS[task].encodes:  # an answer takes two calls, which no one pair of CUDA events is around
        return TorchEncoderDecoder(model.to(f"cuda:{gpu}"), task)
    if FORMS[task].matches:
        return TorchTowers(model.to(f"cuda:{gpu}"), task)
    return (CudaTorchDecoder if FORMS[task].cached else CudaTorchRunner)(model.to(f"cuda:{gpu}"), task)
