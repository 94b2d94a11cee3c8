"""A checkpoint on a GPU: the device's own times and memory, and decoding as one CUDA graph where transformers can.

A prompt is read eagerly, with the cache that grows. A step of one token is some hundred kernels, each shorter than its
start from Python; so the steps go over transformers' cache of fixed size, whose length is a tensor on the device, and
are captured once (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from exporter.checkpoint.opened import TorchDecoder, TorchRunner
from exporter.errors import BuildError
from exporter.runner import Floats, Ids

_ROOM = 1024  # tokens of a cache of fixed size at first; a longer prompt makes a larger one
_EAGERLY, _BY_GRAPH = ", decoding eagerly", ", decoding by a CUDA graph"


class CudaTorchRunner(TorchRunner):
    """A transformers model on a GPU."""

    def __init__(self, model: Any, task: str) -> None:
        super().__init__(model, task)
        cuda = self._torch.cuda
        self.engine += f" on {cuda.get_device_name(self._device)}"
        self.device_ms = 0.0
        self._weights = int(cuda.memory_allocated(self._device))
        self._events = [cuda.Event(enable_timing=True) for _ in range(2)]

    @property
    def device_memory_bytes(self) -> dict[str, int]:
        """The weights', and what computing with them took beside them at most."""
        most = int(self._torch.cuda.max_memory_allocated(self._device))
        return {"weights": self._weights, "peak": most - self._weights}

    def _call(self, **inputs: Any) -> Any:
        return self._timed(lambda: super(CudaTorchRunner, self)._call(**inputs))

    def _timed(self, work: Callable[[], Any]) -> Any:
        begin, end = self._events
        begin.record()
        out = work()
        end.record()
        end.synchronize()
        self.device_ms = begin.elapsed_time(end)
        return out


class CudaTorchDecoder(CudaTorchRunner, TorchDecoder):
    """A text-generation model on a GPU."""

    def __init__(self, model: Any, task: str) -> None:
        super().__init__(model, task)
        self._steps = FixedSteps(model) if FixedSteps.offered(model) else None
        self._graph: Any = None
        self.engine += _EAGERLY if self._steps is None else _BY_GRAPH

    def prefill(self, ids: Ids) -> Floats:
        if self._steps is not None:
            self._steps.forget()
        return super().prefill(ids)

    def step(self, token: int) -> Floats:
        if self._steps is None:
            return super().step(token)
        with self._torch.inference_mode():
            if self._steps.take(self._cache):  # another cache, which no graph knows yet
                self._graph = None
            self._steps.admit(token)
            if self._graph is None and not self._captured(self._steps):
                return super().step(token)
            self._timed(self._graph.replay)
            last: Floats = self._steps.last.float().cpu().numpy()
        return last

    def _captured(self, steps: FixedSteps) -> bool:
        """Makes the step a CUDA graph; where CUDA refuses it, decoding is eager, and the engine says so."""
        try:
            self._graph = self._capture(steps)
        except RuntimeError as error:
            self._steps, why = None, str(error).partition("\n")[0]
            self.engine = self.engine.replace(_BY_GRAPH, f"{_EAGERLY}: no CUDA graph ({why})")
            return False
        return True

    def _capture(self, steps: FixedSteps) -> Any:
        """The graph. What is captured must have run before; capturing runs nothing."""
        cuda = self._torch.cuda
        stream = cuda.Stream()
        stream.wait_stream(cuda.current_stream())
        with cuda.stream(stream):
            steps.run()
            steps.undo()
        cuda.current_stream().wait_stream(stream)
        graph = cuda.CUDAGraph()
        with cuda.graph(graph):
            steps.run()
        return graph

    def __exit__(self, *exc: object) -> None:
        self._graph = self._steps = None
        super().__exit__(*exc)


class FixedSteps:
    """Steps of one token over transformers' StaticCache: all that they read and write stays where it is.

    On any device; a graph of `run` is what makes them fast.
    """

    def __init__(self, model: Any) -> None:
        import torch

        self._model, self._room, self._read = model, 0, 0
        self._cache: Any = None
        self._taken = False
        self._token = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
        self.last: Any = None  # [V]: the logits of the last step

    @staticmethod
    def offered(model: Any) -> bool:
        """Whether a model's code has no branch that depends on a tensor, and its cache none on the step."""
        from transformers.cache_utils import StaticLayer

        if not getattr(model, "_can_compile_fullgraph", False):
            return False
        return all(type(layer) is StaticLayer for layer in _static_cache(model, 1).layers)

    def forget(self) -> None:
        """The next step is after another prompt."""
        self._taken = False

    def take(self, prompt: Any) -> bool:
        """Takes over the cache that a prompt left, once; whether that made a new cache of fixed size."""
        if self._taken:
            return False
        tokens, grown = int(prompt.get_seq_length()), False
        if self._cache is None or tokens >= self._room:
            self._room, grown = max(_ROOM, 2 * tokens), True
            self._cache = _static_cache(self._model, self._room)
        else:
            self._cache.reset()
        for layer, read in zip(self._cache.layers, prompt.layers, strict=True):
            layer.update(read.keys, read.values)
        self._read, self._taken = tokens, True
        return grown

    def admit(self, token: int) -> None:
        """Puts the next token where `run` reads it. Raises BuildError where the cache is full."""
        if self._read >= self._room:
            raise BuildError(f"the cache of {self._room} tokens is full: give a longer prompt at once")
        self._token.fill_(token)
        self._read += 1

    def run(self) -> None:
        """One forward over the token and the cache."""
        self.last = self._model(input_ids=self._token, past_key_values=self._cache, use_cache=True).logits[0, -1]

    def undo(self) -> None:
        """Forgets the last `run`, whose keys and values the next one writes over."""
        for layer in self._cache.layers:
            layer.cumulative_length.sub_(1)


def _static_cache(model: Any, tokens: int) -> Any:
    from transformers import StaticCache

    return StaticCache(config=model.config, max_cache_len=tokens)
