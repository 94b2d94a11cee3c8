"""What is in an ONNX file, as plain data: no weight is looked at, and data beside the file need not be there."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from exporter.errors import BuildError

_HALVES = ("INT4", "UINT4", "FLOAT4E2M1")  # two of them to a byte


def inspect(path: Path) -> dict[str, Any]:
    """Inputs, outputs and operators of the graph, and bytes of its constants by type. Raises BuildError for no ONNX."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise BuildError(f"{path} is no ONNX file, or not a whole one ({error})") from error
    if not model.graph.node:
        raise BuildError(f"{path} is no ONNX file: it holds no graph")
    constants = {tensor.name for tensor in model.graph.initializer}
    sizes: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        sizes[kind.lower()] += _bytes(tensor)
    operators = Counter(".".join(filter(None, (node.domain, node.op_type))) for node in model.graph.node)
    main = {
        "name": model.graph.name,
        "inputs": [_port(value) for value in model.graph.input if value.name not in constants],
        "outputs": [_port(value) for value in model.graph.output],
        "states": [],
        "operators": dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
    }
    opsets = {one.domain or "ai.onnx": one.version for one in model.opset_import}
    told = {one.key: one.value for one in model.metadata_props}
    metadata = {"ir_version": model.ir_version, "producer": model.producer_name, "opsets": opsets, **told}
    return {"format": "onnx", "functions": [main], "bytes": dict(sizes.most_common()), "metadata": metadata}


def _bytes(tensor: Any) -> int:
    """Of a tensor by its type and shape: the numbers may be in another file."""
    import onnx

    kind = onnx.TensorProto.DataType.Name(tensor.data_type)
    bits = 4 if kind in _HALVES else 8 * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    numbers: int = math.prod(tensor.dims)
    return -(-numbers * bits // 8)


def _port(value: Any) -> dict[str, Any]:
    import onnx

    its = value.type.tensor_type
    shape = [one.dim_param or (one.dim_value if one.HasField("dim_value") else None) for one in its.shape.dim]
    return {"name": value.name, "type": onnx.TensorProto.DataType.Name(its.elem_type).lower(), "shape": shape}
