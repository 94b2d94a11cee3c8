"""An ONNX model as files: `model.onnx`, and beyond protobuf's limit its weights in one `model.onnx_data` beside it.

The name of the data file is what optimum, transformers.js and onnxruntime-web look for.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

LIMIT = 2_000_000_000  # bytes of tensors in one file: a protobuf cannot hold 2 GiB
SMALL = 1024  # bytes: a tensor up to this size stays in the graph, where shape inference sees its values


def save_onnx(model: onnx.ModelProto, path: Path, limit: int = LIMIT, *, data_folder: Path | None = None) -> None:
    """Writes `path`; with more than `limit` bytes of tensors, also one file of external data, `path`'s name + `_data`.

    `data_folder` is what the locations of tensors that are external already are relative to (the folder that the model
    was read from); they are mapped, not loaded, while they are written to the new data file. `model` is not changed.
    """
    import onnx
    import onnx_ir as ir

    outside = any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)
    if not outside and model.ByteSize() <= limit:
        onnx.save(model, path)
        _remove_stale_data(path)
        return
    graph = ir.from_proto(model)
    if data_folder is not None:
        ir.external_data.set_base_dir(graph.graph, data_folder)
    save_graph(graph, path, limit)


def save_graph(model: ir.Model, path: Path, limit: int = LIMIT) -> None:
    """Like save_onnx, for onnx_ir's model, whose tensors are let go as they are written: it is spent afterwards.

    No second copy of the weights is made, only of one tensor at a time.
    """
    import onnx_ir as ir

    values = [value for value in model.graph.initializers.values() if value.const_value is not None]
    if sum(value.const_value.nbytes for value in values if value.const_value is not None) > limit:
        ir.save(model, path, external_data=path.name + "_data", size_threshold_bytes=SMALL)
        return
    tensors: dict[str, ir.TensorProtocol] = {}
    for value in values:
        if value.const_value is not None and value.const_value.nbytes > SMALL:
            tensors[str(value.name)] = value.const_value
            value.const_value = None
            model.graph.initializers.pop(str(value.name))
    _write_whole(ir.to_proto(model), tensors, path)
    _remove_stale_data(path)


def _write_whole(model: onnx.ModelProto, tensors: dict[str, ir.TensorProtocol], path: Path) -> None:
    """Writes `model` with `tensors` as its last initializers, in protobuf's encoding, but one after the other.

    protobuf itself would hold all of them in memory three times. https://protobuf.dev/programming-guides/encoding
    """
    import onnx

    graph, tensor_fields = model.graph.SerializeToString(), onnx.TensorProto.DESCRIPTOR.fields_by_name
    heads: dict[str, bytes] = {}  # a length-delimited field's start, up to the bytes of the tensor
    for name, tensor in tensors.items():
        shell = onnx.TensorProto(name=name, dims=tensor.shape.numpy(), data_type=tensor.dtype.value).SerializeToString()
        shell += _start(tensor_fields["raw_data"].number, tensor.nbytes)
        initializer = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
        heads[name] = _start(initializer, len(shell) + tensor.nbytes) + shell
    length = len(graph) + sum(len(head) + tensors[name].nbytes for name, head in heads.items())
    model.ClearField("graph")
    with path.open("wb") as file:
        file.write(model.SerializeToString())
        file.write(_start(onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number, length))
        file.write(graph)
        for name, head in heads.items():
            file.write(head)
            file.write(tensors.pop(name).tobytes())


def _start(field: int, length: int) -> bytes:
    """The tag of a length-delimited field (wire type 2) and its length, both as varints."""
    encoded = bytearray()
    for number in (field << 3 | 2, length):
        while number > 0x7F:
            encoded.append(number & 0x7F | 0x80)
            number >>= 7
        encoded.append(number)
    return bytes(encoded)


def _remove_stale_data(path: Path) -> None:
    """A data file of an earlier, larger model at this path would pass for a part of this one."""
    path.with_name(path.name + "_data").unlink(missing_ok=True)


def load_graph(model_onnx: Path) -> ir.Model:
    """A graph with its small tensors in memory; the large weights stay on the disk until they are written."""
    import onnx_ir as ir

    from exporter.targets.onnx_graph.shell import LARGE

    model = ir.load(model_onnx)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes <= LARGE:
            value.const_value = ir.Tensor(tensor.numpy().copy(), name=tensor.name)
    return model


def made_once(scratch: Path, make: Callable[[Path], None], name: str = "float") -> Path:
    """model.onnx of a float32 graph in a run's scratch folder: `make` writes it for the first that needs it."""
    folder = scratch / name
    model, done = folder / "model.onnx", scratch / f"{name}.done"
    if not done.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        make(model)
        done.touch()
    return model
