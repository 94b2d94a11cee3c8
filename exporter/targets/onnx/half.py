"""float16 by onnxruntime's own converter, which is shown the graph without its weights.

The converter wants a whole ModelProto in memory. The large weights are taken out and declared as inputs first, and put
back as float16 afterwards, one by one while they are written, so that neither copy is ever whole in memory.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from exporter.errors import BuildError
from exporter.targets.onnx_graph.shell import shell

if TYPE_CHECKING:
    import onnx_ir as ir


def half(model: ir.Model) -> ir.Model:
    """The graph in float16, with float32 inputs and outputs, the KV cache's too: the types that clients feed.

    Raises BuildError when a weight is beyond float16's range.
    """
    import onnx
    import onnx_ir as ir
    from onnxruntime.transformers.float16 import convert_float_to_float16

    kept = [str(value.name) for value in (*model.graph.inputs, *model.graph.outputs)]
    proto, weights = shell(model)
    # Types of the values in between tell the converter where an operator that stays in float32 needs casts.
    proto = onnx.shape_inference.infer_shapes(proto)
    converted: ir.Model = ir.from_proto(convert_float_to_float16(proto, keep_io_types=kept, disable_shape_infer=True))
    for value in [value for value in converted.graph.inputs if value.name in weights]:
        name, tensor = str(value.name), weights[str(value.name)]
        converted.graph.inputs.remove(value)
        lazy = partial(_cast, name, tensor)
        value.const_value = ir.LazyTensor(lazy, dtype=ir.DataType.FLOAT16, shape=value.shape or ir.Shape(()), name=name)
        converted.graph.register_initializer(value)
    converted.graph.sort()  # the converter leaves its casts at the end
    return converted


def _cast(name: str, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    import onnx_ir as ir

    floats = tensor.numpy()
    largest = float(np.abs(floats).max())
    if largest > float(np.finfo(np.float16).max):
        raise BuildError(
            f"the weight {name} holds {largest:.3g}, beyond float16's range; use bf16 or fp32 for this model"
        )
    return ir.Tensor(floats.astype(np.float16), name=name)
