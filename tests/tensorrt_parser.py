"""TensorRT-RTX's own parser and builder, which need no GPU, for the tests of the graphs that are handed to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


def parse(model: Path, build: Callable[[str, int], tuple[int, int, int]] | None = None) -> list[str]:
    """What the parser says against a graph; with `build`, (least, usual, most) of a dynamic axis, the builder too."""
    trt = pytest.importorskip("tensorrt_rtx", reason="needs the extra [tensorrt-rtx]")
    lines: list[str] = []

    class Log(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)

        def log(self, severity, message):
            if severity <= trt.ILogger.ERROR:
                lines.append(message)

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(model)):
        return [parser.get_error(number).desc() for number in range(parser.num_errors)]
    if build is not None:
        config, profile = builder.create_builder_config(), builder.create_optimization_profile()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)
        for number in range(network.num_inputs):
            value = network.get_input(number)
            sizes = [build(value.name, axis) if size < 0 else (size,) * 3 for axis, size in enumerate(value.shape)]
            profile.set_shape(value.name, *zip(*sizes, strict=True))
        config.add_optimization_profile(profile)
        if builder.build_serialized_network(network, config) is None:
            return lines or ["not built"]
    return []
