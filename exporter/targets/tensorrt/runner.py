"""An engine on the GPU, with TensorRT and torch alone: buffers are torch's tensors, and the KV cache stays there.

Prompts run at their own length, the decode step at the profile's longest, as one CUDA graph. TensorRT forbids to change
a context that a graph was captured from, so the step has a context of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from exporter.errors import BuildError
from exporter.form import PIXELS
from exporter.runner import Floats, Ids, Sample
from exporter.targets.onnx_graph.session import joined, usual_inputs
from exporter.targets.tensorrt.build import PLAN
from exporter.targets.tensorrt.cache import StepInputs
from exporter.targets.tensorrt.log import Log
from exporter.targets.tensorrt.platform import Platform
from exporter.targets.tensorrt.profile import Profile

if TYPE_CHECKING:
    import torch


class EngineRunner:
    """An encoder's engine, and what a decoder's has in common with it."""

    def __init__(self, folder: Path, platform: Platform, profile: Profile) -> None:
        import torch

        self._profile = profile
        trt = platform.load()
        self._log = Log(trt)
        free = torch.cuda.mem_get_info()[0]
        self._runtime = trt.Runtime(self._log.logger)
        self._engine = self._runtime.deserialize_cuda_engine((folder / PLAN).read_bytes())
        if self._engine is None:
            here = torch.cuda.get_device_name()
            raise BuildError(f"{platform} cannot open {PLAN} on {here}: {self._log.last_lines()}")
        weights = free - torch.cuda.mem_get_info()[0]
        self._context = self._engine.create_execution_context()
        self.device_memory_bytes = {"engine": weights, "context": int(self._engine.device_memory_size_v2)}
        self.device_ms = 0.0
        self.engine = f"{platform} on {torch.cuda.get_device_name()}"
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self._kinds = {name: _torch_kind(self._engine.get_tensor_dtype(name)) for name in names}
        self._inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self._outputs = [name for name in names if name not in self._inputs]
        if PIXELS not in self._inputs:  # a picture has no length
            self.max_length = profile.length.max
        self._stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._nothing = torch.empty(1, device="cuda")  # an address for tensors of no elements

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        import torch

        torch.cuda.synchronize()
        del self._context, self._engine, self._runtime  # in this order

    def logits(self, ids: Sample) -> Floats:
        out = self.batch(ids[None], np.ones((1, len(ids)), np.int64))
        return out[0] if out.ndim == 3 and ids.ndim == 1 else out

    def batch(self, ids: Sample, mask: Ids) -> Floats:
        return self._profile.batched(ids, mask, self._forward)

    def segmented(self, ids: Ids, segments: Ids) -> Floats:
        def forward(rows: Ids, mask: Ids) -> Floats:  # a small batch is filled with copies of the one row
            return self._forward(rows, mask, np.broadcast_to(segments, rows.shape))

        out = self._profile.batched(ids[None], np.ones_like(ids)[None], forward)
        return out[0] if out.ndim == 3 else out

    def _forward(self, ids: Sample, mask: Ids, segments: Ids | None = None) -> Floats:
        outputs = self._run(self._feeds(ids, mask, segments))
        answers = (outputs[name] for name in self._outputs if not name.startswith("present."))
        return joined([answer.float().cpu().numpy() for answer in answers])

    def _feeds(self, ids: Sample, mask: Ids, segments: Ids | None = None) -> dict[str, torch.Tensor]:
        """The usual inputs on the device, for [B, T] new ids and a mask [B, past + T], or for pictures."""
        import torch

        return {
            name: torch.from_numpy(np.ascontiguousarray(value)).to("cuda", self._kinds[name])
            for name, value in usual_inputs(ids, mask, segments).items()
            if name in self._inputs
        }

    def _empty(self, past: str, batch: int) -> torch.Tensor:
        """A KV cache's input of nothing."""
        import torch

        _, heads, _, size = self._engine.get_tensor_shape(past)
        return torch.zeros(batch, heads, 0, size, dtype=self._kinds[past], device="cuda")

    def _run(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """One forward; its own time on the device goes to device_ms."""
        outputs = self._bind(self._context, feeds)
        self._timed(lambda: self._enqueue(self._context))
        return outputs

    def _bind(self, context: Any, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Gives a context its inputs, and outputs of the shapes that follow."""
        import torch

        for name, tensor in feeds.items():
            if not context.set_input_shape(name, tuple(tensor.shape)):
                raise BuildError(f"the engine takes no {name} of {tuple(tensor.shape)}: {self._log.last_lines()}")
            context.set_tensor_address(name, (tensor if tensor.numel() else self._nothing).data_ptr())
        outputs = {
            name: torch.empty(tuple(context.get_tensor_shape(name)), dtype=self._kinds[name], device="cuda")
            for name in self._outputs
        }
        for name, tensor in outputs.items():
            context.set_tensor_address(name, tensor.data_ptr())
        return outputs

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self._stream.cuda_stream):
            raise BuildError(f"the engine failed: {self._log.last_lines()}")

    def _timed(self, work: Callable[[], None]) -> None:
        import torch

        self._stream.wait_stream(torch.cuda.current_stream())  # the inputs are written there
        with torch.cuda.stream(self._stream):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            work()
            end.record()
        end.synchronize()
        self.device_ms = begin.elapsed_time(end)


class DecoderEngineRunner(EngineRunner):
    """A text generation engine with its KV cache."""

    def __init__(self, folder: Path, platform: Platform, profile: Profile) -> None:
        super().__init__(folder, platform, profile)
        shapes = {name: tuple(self._engine.get_tensor_shape(name)) for name in self._inputs}
        self._step = StepInputs(shapes, self._kinds, profile.length.max - 1, "cuda")
        self._length = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def _feeds(self, ids: Sample, mask: Ids, segments: Ids | None = None) -> dict[str, torch.Tensor]:
        return super()._feeds(ids, mask, segments) | {name: self._empty(name, len(ids)) for name in self._step.past}

    def prefill(self, ids: Ids) -> Floats:
        self._profile.admit(len(ids))
        self._length = len(ids)
        outputs = self._run(self._feeds(ids[None], np.ones_like(ids)[None]))
        self._step.begin(self._length, outputs)
        last: Floats = outputs[self._outputs[0]][0, -1].float().cpu().numpy()
        return last

    def step(self, token: int) -> Floats:
        self._profile.admit(self._length + 1)
        self._step.write(token)
        graph = self._graph or self._capture()
        self._timed(graph.replay)
        self._length += 1
        last: Floats = self._answers[self._outputs[0]][0, -1].float().cpu().numpy()
        return last

    def _capture(self) -> torch.cuda.CUDAGraph:
        """The step as one CUDA graph: the engine, and the new keys and values moved to where the next step reads them.

        TensorRT wants one run at the shape before its capture, and capturing runs nothing: so the cache is as it was.
        """
        import torch

        context = self._engine.create_execution_context()
        self._answers = self._bind(context, self._step.tensors)
        self._timed(lambda: self._enqueue(context))
        self._graph = graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._enqueue(context)
            self._step.keep(self._answers)
        self._decoding = context  # the graph holds its memory, and no reference
        return graph

    def __exit__(self, *exc: object) -> None:
        import torch

        torch.cuda.synchronize()
        self._graph = self._decoding = None
        super().__exit__(*exc)


def _torch_kind(kind: Any) -> Any:
    import torch

    return {
        "FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT64": torch.int64,
        "INT32": torch.int32, "BOOL": torch.bool,
    }[kind.name]  # fmt: skip


def open_engine(folder: Path, platform: Platform, profile: Profile, decoder: bool, gpu: int) -> EngineRunner:
    """The runner of a folder's engine on a GPU; platform.cannot_run must have said None of it before."""
    import torch

    torch.cuda.set_device(gpu)
    return (DecoderEngineRunner if decoder else EngineRunner)(folder, platform, profile)
