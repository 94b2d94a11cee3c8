"""One linear layer by itself, which the policy's times are taken of: as int8-static runs it, or in float."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from exporter.scheme import Scheme
from exporter.targets.torch.static import check_kernels, int8_linear


def layer_run(shape: tuple[int, int], scheme: Scheme | None, copies: int, threads: int) -> Callable[[int], object]:
    """Runs copies of a layer [N, K] once, on so many rows: what it is called with. The weights are random.

    Raises BuildError where this machine has no integer kernels.
    """
    import torch

    torch.set_num_threads(threads)
    channels, inputs = shape

    def made() -> Any:
        if scheme is None or scheme.input == "float":  # rounded weights beside a float input are float32 numbers
            return torch.nn.Linear(inputs, channels, bias=False)
        weight = torch.randint(-127, 128, shape, dtype=torch.int8)
        check_kernels()
        layer = int8_linear()(weight, torch.ones(channels), None, scheme)
        layer.pack()
        return layer

    layers = [made() for _ in range(copies)]

    def run(rows: int) -> object:
        with torch.inference_mode():
            fed = torch.ones(rows, inputs)
            return [layer(fed) for layer in layers]

    return run
