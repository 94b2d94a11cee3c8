"""One linear layer as a graph of its own, which the policy's times are taken of: the writer's operators, by themselves.

The graph has copies of the layer, with weights and inputs of their own: one whose weights stay in the processor's
cache from call to call would look quicker than it is among others.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from exporter.scheme import Scheme
from exporter.targets.onnx_graph.attention_operator import OPSET
from exporter.targets.onnx_graph.file import save_graph
from exporter.targets.onnx_graph.linear import find_matrices
from exporter.targets.onnx_graph.nodes import add, finish
from exporter.targets.onnx_graph.schemes import quantize
from exporter.targets.onnx_graph.session import options_of


def layer_run(shape: tuple[int, int], scheme: Scheme | None, copies: int, threads: int) -> Callable[[int], object]:
    """Runs copies of a layer [N, K] once, on so many rows: what it is called with. The weights are random."""
    import onnx_ir as ir
    import onnxruntime

    channels, inputs = shape
    random = np.random.default_rng(0)
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="layers")
    model = ir.Model(graph, ir_version=10)
    floats = ir.TensorType(ir.DataType.FLOAT)
    for number in range(copies):
        weight = add(model, f"weight_{number}", random.standard_normal((inputs, channels), np.float32))
        fed = ir.Value(name=f"x_{number}", shape=ir.Shape(["rows", inputs]), type=floats)
        node = ir.node("MatMul", [fed, weight], name=f"layer_{number}")
        [answer] = node.outputs
        answer.name, answer.shape, answer.type = f"y_{number}", ir.Shape(["rows", channels]), floats
        graph.append(node)
        graph.inputs.append(fed)
        graph.outputs.append(answer)
    if scheme is not None:
        for matrix in find_matrices(model):
            quantize(model, matrix, scheme)
    finish(model)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "layer.onnx"
        save_graph(model, path)
        session = onnxruntime.InferenceSession(str(path), options_of(threads), providers=["CPUExecutionProvider"])
    rows_of: dict[int, dict[str, object]] = {}

    def run(rows: int) -> object:
        if rows not in rows_of:
            made = random.standard_normal((rows, inputs), np.float32)
            rows_of[rows] = {f"x_{number}": made for number in range(copies)}
        return session.run(None, rows_of[rows])

    return run
