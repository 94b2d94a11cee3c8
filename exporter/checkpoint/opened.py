"""A checkpoint run by transformers: the float32 reference, and what every target's torch artifacts are run by."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any, Self

import numpy as np

from exporter.checkpoint.model import load_model
from exporter.checkpoint.tokenizer import rows_of
from exporter.runner import Floats, Ids
from exporter.types import CLASSIFICATION, GENERATION


class TorchRunner:
    """A transformers model in eval mode on the CPU."""

    def __init__(self, model: Any, task: str) -> None:
        import torch

        self.engine = f"torch {torch.__version__} {str(model.dtype).removeprefix('torch.')}"
        self._torch = torch
        self._model = model.eval()
        self._task = task
        self._cache: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        del self._model, self._cache

    def logits(self, ids: Ids) -> Floats:
        out = self.batch(ids[None], np.ones_like(ids)[None])
        return out if self._task == CLASSIFICATION else out[0]

    def segmented(self, ids: Ids, segments: Ids) -> Floats:
        known = "token_type_ids" in signature(self._model.forward).parameters
        extra = {"token_type_ids": self._torch.from_numpy(segments[None])} if known else {}
        out = self._floats(self._forward(ids[None], attention_mask=self._torch.ones((1, len(ids))), **extra))
        return out if self._task == CLASSIFICATION else out[0]

    def batch(self, ids: Ids, mask: Ids) -> Floats:
        extra = {"use_cache": False} if self._task == GENERATION else {}
        return self._floats(self._forward(ids, attention_mask=self._torch.from_numpy(mask), **extra))

    def parameters(self) -> int:
        """How many numbers were trained; a tied weight counts once."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    def rows(self) -> int:
        return rows_of(self._model)

    def _forward(self, ids: Ids, **inputs: Any) -> Any:
        with self._torch.inference_mode():
            return self._model(input_ids=self._torch.from_numpy(np.ascontiguousarray(ids)), **inputs)

    def _floats(self, out: Any) -> Floats:
        tensor = out.logits if "logits" in out else out.last_hidden_state
        result: Floats = tensor.float().numpy()
        return result


class TorchDecoder(TorchRunner):
    """A text-generation model, with transformers' own KV cache."""

    def prefill(self, ids: Ids) -> Floats:
        out = self._forward(ids[None], use_cache=True)
        self._cache = out.past_key_values
        last: Floats = self._floats(out)[0, -1]
        return last

    def step(self, token: int) -> Floats:
        out = self._forward(np.array([[token]]), use_cache=True, past_key_values=self._cache)
        last: Floats = self._floats(out)[0, -1]
        return last


def open_checkpoint(path: Path, task: str, threads: int, dtype: str = "float32", trust: bool = False) -> TorchRunner:
    """A checkpoint's folder as a runner: how the reference is opened."""
    import torch

    torch.set_num_threads(threads)
    kind = TorchDecoder if task == GENERATION else TorchRunner
    return kind(load_model(path, task, dtype, trust), task)
