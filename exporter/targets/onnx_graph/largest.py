"""The largest magnitude of each tensor of a float graph on real text: what a narrower type must hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.targets.onnx_graph.file import save_graph
from exporter.targets.onnx_graph.session import usual_inputs

if TYPE_CHECKING:
    import onnx_ir as ir

    from exporter.runner import Floats, Ids, Sample

MARGIN = 2  # text that nobody calibrated on has larger activations
_WINDOWS, _WINDOW = 4, 256  # the largest are at the first tokens, and in the same channels in every text


def largest_of(
    model: ir.Model,
    names: Sequence[str],
    windows: Ids,
    scratch: Path,
    threads: int,
    beside: Callable[[Sample], Mapping[str, Sample]] | None = None,
) -> dict[str, float]:
    """Of the values `names` on token ids [windows, window]. `model` is float32; it is spent. `beside`: what the graph
    of a decoder takes of a window, by the names of its inputs.

    Each tensor is reduced to one number as it is made, and kept no longer.
    """
    some = windows[:_WINDOWS, :_WINDOW] if windows.dtype.kind == "i" else windows
    found = dict.fromkeys(names, 0.0)
    asked = [(name, "Abs", "ReduceMax") for name in names]
    for name, value in _watched(model, asked, some, scratch, threads, beside):
        found[name] = float(np.maximum(found[name], value))  # NaN stays NaN
    return found


def ranges_of(
    model: ir.Model, names: Sequence[str], pictures: Floats, scratch: Path, threads: int
) -> dict[str, tuple[float, float]]:
    """The least and the largest number of each of these values on pictures [n, C, H, W] or sounds [n, T]; `model` is
    spent."""
    found = dict.fromkeys(names, (0.0, 0.0))
    asked = [(name, "Identity", most) for name in names for most in ("ReduceMin", "ReduceMax")]
    for name, value in _watched(model, asked, pictures, scratch, threads):
        low, high = found[name]
        found[name] = min(low, value), max(high, value)
    return found


def _watched(
    model: ir.Model,
    asked: Sequence[tuple[str, str, str]],
    samples: Sample,
    scratch: Path,
    threads: int,
    beside: Callable[[Sample], Mapping[str, Sample]] | None = None,
) -> Iterator[tuple[str, float]]:
    """For each sample and each (value, operator, reduction): the value's name and the number that is made of it."""
    import onnx_ir as ir

    path = scratch / "probe.onnx"
    outputs = _watch(model, asked)
    save_graph(model, path, limit=0)
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value.release()  # its mapped pages, which the session reads again
    yield from _run(path, [name for name, _, _ in asked], outputs, samples, threads, beside)
    for file in (path, path.with_name(path.name + "_data")):
        file.unlink(missing_ok=True)


def weights_beyond(model: ir.Model, limit: float) -> Iterable[tuple[str, float]]:
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.dtype.name == "FLOAT" and tensor.size:
            array = tensor.numpy()
            largest = float(max(array.max(), -array.min()))
            if not largest <= limit:
                yield str(name), largest


def _watch(model: ir.Model, asked: Sequence[tuple[str, str, str]]) -> list[str]:
    """An output for each (value, operator, reduction); their names."""
    import onnx_ir as ir

    values = {str(value.name): value for node in model.graph for value in node.outputs}
    outputs = []
    for name, operator, reduction in asked:
        node = values[name].producer()
        assert node is not None
        first = ir.node(operator, [values[name]], name=f"{name}/{operator}_{reduction}")
        most = ir.node(reduction, [first.outputs[0]], {"keepdims": 0}, name=f"{name}/{reduction}")
        most.outputs[0].name = f"{name}/{reduction}"
        most.outputs[0].type, most.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
        model.graph.insert_after(node, [first, most])
        model.graph.outputs.append(most.outputs[0])
        outputs.append(str(most.outputs[0].name))
    return outputs


def _run(
    path: Path,
    names: Sequence[str],
    outputs: Sequence[str],
    samples: Sample,
    threads: int,
    beside: Callable[[Sample], Mapping[str, Sample]] | None,
) -> Iterator[tuple[str, float]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Memory: no arena that keeps what nobody needs any more, and no second copy of the weights in the kernels' order.
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    # Nothing may be fused: what is asked for is each tensor of the graph.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for sample in samples:
        ids: Any = sample if sample.dtype.kind == "f" else sample.astype(np.int64)
        feeds = _feeds(session, ids[None])
        if beside is not None:
            taken = {value.name for value in session.get_inputs()}
            feeds |= {name: value for name, value in beside(ids).items() if name in taken}
        for name, value in zip(names, session.run(list(outputs), feeds), strict=True):
            yield name, float(value)


def _feeds(session: Any, ids: Sample) -> dict[str, Any]:
    """What a graph takes for token ids [1, T] without padding and with an empty cache."""
    usual = usual_inputs(ids, np.ones(ids.shape[:2], np.int64))
    past = {
        value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past_key_values.")
    }
    return past | {value.name: usual[value.name] for value in session.get_inputs() if value.name in usual}
