"""ONNX Runtime on a GPU: inputs, outputs and the KV cache are bound there, and only answers come back."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exporter import onnxruntimes
from exporter.device import CUDA, Gpu
from exporter.errors import BuildError
from exporter.form import FORMS
from exporter.runner import Floats, Ids
from exporter.targets.onnx_graph.session import OnnxDecoder, OnnxRunner, bind, joined, options_of

PROVIDER = "CUDAExecutionProvider"


def lacks_cuda(precision: str, task: str) -> str | None:
    """Why the ONNX Runtime that is installed runs no model of a task on a GPU, or None."""
    if FORMS[task].encodes:
        return "an encoder and its decoder, two graphs, are not run on a GPU yet"
    if FORMS[task].matches:
        return "a tower for texts and one for pictures are not run on a GPU yet"
    import onnxruntime

    if PROVIDER in onnxruntime.get_available_providers():
        return None
    return (
        f"onnxruntime {onnxruntime.__version__} was built without CUDA, and shares its folder with the build that has "
        f"it: {onnxruntimes.found().change_to(onnxruntimes.GPU)}"
    )


def open_session(model: Path, options: Any, gpu: Gpu) -> Any:
    """An InferenceSession on a GPU. Raises BuildError where ONNX Runtime took the CPU, which it does not tell."""
    import onnxruntime

    # CUDA's libraries of the packages beside it, which the extra [cuda] brings: it does not look there by itself.
    onnxruntime.preload_dlls()
    # float32 is float32: TF32 has 10 bits of its 23.
    how = {"device_id": str(gpu.number), "use_tf32": "0", "user_compute_stream": str(gpu.stream)}
    session = onnxruntime.InferenceSession(str(model), options, providers=[(PROVIDER, how), "CPUExecutionProvider"])
    if (provider := session.get_providers()[0]) != PROVIDER:
        raise BuildError(
            f"ONNX Runtime opened {model.name} on {provider}, not {CUDA}: its libraries of CUDA or cuDNN are missing "
            "or of another version than it was built for; its own message is in the log, 'exporter doctor' tells more"
        )
    return session


def placement_of(profile: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where the nodes of ONNX Runtime's profile ran: PlacedRunner.placement."""
    on_cpu: Counter[str] = Counter()
    on_device = copies = 0
    for event in profile:
        about = event.get("args", {})
        if event.get("cat") != "Node" or "provider" not in about or not event["name"].endswith("_kernel_time"):
            continue
        if about["op_name"].startswith("Memcpy"):
            copies += 1
        elif about["provider"] == "CPUExecutionProvider":
            on_cpu[about["op_name"]] += 1
        else:
            on_device += 1
    return {"on_cpu": dict(on_cpu.most_common()), "on_device": on_device, "copies": copies}


def profiled(session: Any, name: str, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """The placement of one forward to an output, of a session that was opened with a profile to write."""
    session.run([name], dict(feeds))
    return placement_of(json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")))


class CudaRunner(OnnxRunner):
    """An encoder on a GPU, and what a decoder's has in common with it."""

    def __init__(self, model: Path, threads: int, gpu: Gpu) -> None:
        self._gpu, before = gpu, gpu.free_bytes()
        super().__init__(model, threads, open_session(model, options_of(threads), gpu))
        self.engine += f" on {gpu.name}"
        self.device_ms = 0.0  # of the last call, between CUDA events
        # Of the opened session, and what its arena grew by since.
        self.device_memory_bytes = {"weights": before - gpu.free_bytes(), "arena": 0}
        self._before = before

    def placement(self, ids: Ids) -> dict[str, Any]:
        """What of one forward over [T] ids ran on the CPU, by ONNX Runtime's own profile of it."""
        options = options_of(self._threads)
        options.enable_profiling = True
        with tempfile.TemporaryDirectory(prefix="exporter-profile-") as folder:
            options.profile_file_prefix = str(Path(folder) / "profile")
            session = open_session(self._model, options, self._gpu)
            return profiled(session, self._outputs[0], self._feeds(ids[None], np.ones_like(ids)[None]))

    def _answer(self, feeds: dict[str, Any]) -> Floats:
        return joined([value.numpy() for value in self._values(self._answers, feeds)])

    def _values(self, names: list[str], feeds: dict[str, Any]) -> list[Any]:
        binding = bind(self._session, names, feeds, CUDA, self._gpu.number)
        self.device_ms = self._gpu.milliseconds(lambda: self._session.run_with_iobinding(binding))
        taken = self._before - self._gpu.free_bytes()
        memory = self.device_memory_bytes
        memory["arena"] = max(memory["arena"], taken - memory["weights"])
        values: list[Any] = binding.get_outputs()
        return values


class CudaDecoder(CudaRunner, OnnxDecoder):
    """A text-generation session whose cache stays on the GPU between steps."""
