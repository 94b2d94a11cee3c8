"""Where a graph's numbers end: the first tensor that is NaN or infinite though all that it is made of is finite."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx


def first_not_finite(path: Path, feeds: Mapping[str, Any], threads: int) -> str | None:
    """Its name, its operator and what it is, of the graph at `path` run on `feeds`; None where all is finite.

    Every tensor is an output: of a short text, for they are all in memory at once. A mask's infinities are not meant:
    what is looked for is the cause of the first NaN, or where there is none of the last infinity.
    """
    if find_spec("onnx") is None:  # a machine that only measures: what failed is told there, the tensor is not
        return None
    import onnx
    import onnxruntime

    model = onnx.load(path, load_external_data=False)
    names = [name for node in model.graph.node for name in node.output if name]
    given = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Nothing may be fused: what is asked for is each tensor of the graph.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = dict(zip(names, session.run(names, dict(feeds)), strict=True))
    odd = {name: _kind(value) for name, value in values.items()}
    start = next((name for name in names if odd[name] == "NaN"), None)
    start = start or next((name for name in reversed(names) if odd[name]), None)
    return None if start is None else _cause(model.graph, start, odd)


def _kind(value: Any) -> str:
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        return ""
    return "NaN" if np.isnan(value).any() else "infinite" if np.isinf(value).any() else ""


def _cause(graph: onnx.GraphProto, name: str, odd: Mapping[str, str]) -> str:
    """Upstream from a tensor to the first whose operator reads finite numbers alone."""
    makers = {output: node for node in graph.node for output in node.output}
    while (before := next((one for one in makers[name].input if odd.get(one)), None)) is not None:
        name = before
    return f"{name} ({makers[name].op_type}) is {odd[name]}"
