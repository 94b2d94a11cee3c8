"""What does not fit into float16 on real text: the float32 graph run on calibration windows, every tensor's largest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.targets.onnx_graph.attention_operator import write_out
from exporter.targets.onnx_graph.half_types import MOVING, STATISTICS, float_values
from exporter.targets.onnx_graph.largest import MARGIN, largest_of, weights_beyond

if TYPE_CHECKING:
    import onnx_ir as ir

    from exporter.runner import Ids, Sample


def overflowing(
    model: ir.Model,
    windows: Ids | None,
    scratch: Path,
    threads: int,
    limit: float,
    beside: Callable[[Sample], Mapping[str, Sample]] | None = None,
) -> dict[str, float]:
    """The values beyond `limit` / MARGIN on token ids [windows, window], and how large they are.

    `model` is prepared and float32; it is spent. Weights beyond `limit` are found too, and without windows only they.
    What overflows inside an Attention counts as its output too. `beside` is largest_of's.
    """
    attention = [str(node.outputs[0].name) for node in model.graph if node.op_type == "Attention"]
    found = dict(weights_beyond(model, limit))
    if windows is None:
        return found
    write_out(model)
    floats = float_values(model)
    names = [
        str(value.name)
        for node in model.graph
        if node.op_type not in MOVING | STATISTICS
        for value in node.outputs
        if value.name and str(value.name) in floats
    ]
    for name, largest in largest_of(model, names, windows, scratch, threads, beside).items():
        if not largest <= limit / MARGIN:
            found[name] = largest
            found |= {whole: largest for whole in attention if name.startswith(f"{whole}/")}
    return found
