"""TensorRT and TensorRT-RTX: one Python API in two packages, whose engines are not each other's.

TensorRT builds on the GPU that the engine is for. TensorRT-RTX builds ahead of time, with no GPU, for the compute
capabilities of RTX GPUs (https://docs.nvidia.com/deeplearning/tensorrt-rtx), and compiles on the GPU at the first run.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from exporter.device import count
from exporter.distribution import install_command


@dataclass(frozen=True)
class Platform:
    """One of the two. `package` is the target's name too; `tool` is NVIDIA's command line for it."""

    package: str
    module: str
    tool: str
    ahead_of_time: bool  # builds without a GPU, for compute capabilities; and knows no other kind of compatibility

    def load(self) -> Any:
        return importlib.import_module(self.module)

    def version(self) -> str | None:
        """The installed package's version; None where it is not installed."""
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return None

    def __str__(self) -> str:
        return f"{self.package} {self.version()}"


TENSORRT = Platform("tensorrt", "tensorrt", "trtexec", ahead_of_time=False)
RTX = Platform("tensorrt-rtx", "tensorrt_rtx", "tensorrt_rtx", ahead_of_time=True)


def capabilities(trt: Any) -> dict[str, Any]:
    """What --tensorrt-rtx-compute-capability can name, such as sm89, in the words of TensorRT-RTX's module."""
    members = trt.ComputeCapability.__members__.items()
    return {name.lower(): value for name, value in members if name.startswith("SM")}


def can_parse(platform: Platform) -> bool:
    """Whether its parser can be asked here: TensorRT's own needs a GPU, TensorRT-RTX's none."""
    return platform.version() is not None and (platform.ahead_of_time or count() > 0)


def open_parser(trt: Any, builder: Any, logger: Any) -> tuple[Any, Any]:
    """An empty strongly typed network, and the parser that fills it."""
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    return network, trt.OnnxParser(network, logger)


def lacking(platform: Platform, operators: Iterable[str]) -> frozenset[str]:
    """Those of ONNX's operators that its parser does not have; none where no parser can be asked."""
    if not can_parse(platform):
        return frozenset()
    trt = platform.load()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    _, parser = open_parser(trt, builder, logger)
    return frozenset(operator for operator in operators if not parser.supports_operator(operator))


def cannot_run(platform: Platform, gpu: int | None = 0) -> str | None:
    """Why this process cannot run the platform's engines on a GPU, by its number, or None.

    An engine is never opened before this says None: deserializing one without a driver can crash the process.
    """
    import torch

    if not count():
        return "no CUDA device"
    if gpu is None:
        return "the engine runs on a GPU, and the CPU was asked for (--device cpu)"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} was built without CUDA, and holds the engine's inputs"
    if platform.version() is None:
        mend = install_command(platform.package, [platform.package])
        return f"{platform.package} is not installed: {mend}"
    capability = torch.cuda.get_device_capability(gpu)
    if platform.ahead_of_time and not _rtx(capability, platform.load()):
        here = f"{torch.cuda.get_device_name(gpu)} has compute capability {capability[0]}.{capability[1]}"
        return f"TensorRT-RTX runs on RTX GPUs only (8.0, 8.6, 8.9, 12.x), and {here}: --target tensorrt is for it"
    return None


def _rtx(capability: tuple[int, int], trt: Any) -> bool:
    """Whether TensorRT-RTX knows a capability, or an engine that names none would run on it as on a later one."""
    return f"sm{capability[0]}{capability[1]}" in capabilities(trt) or capability >= (12, 0)
