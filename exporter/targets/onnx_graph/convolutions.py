"""The convolutions of a graph that is quantized: what each becomes is what ONNX Runtime has fast kernels for.

- One whose patches do not overlap (kernel = stride, as in ViT's first layer) is a matrix product of the patches: it is
  made one, and what quantizes matrices does the rest.
- Any other gets int8 weights per output channel, behind a DequantizeLinear; with a static input QuantizeLinear and
  DequantizeLinear around it too, which ONNX Runtime fuses into QLinearConv, and that has its output in 8 bits as well.
  ConvInteger, which would need no range of its output, is three to thirty times slower than QLinearConv, and slower
  than float.

A batch normalization behind a quantized convolution goes into the scales of its weights and its bias: the codes stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.quantization.grid import INT32, input_grid, quantized
from exporter.runner import Floats
from exporter.scheme import Scheme
from exporter.targets.onnx_graph.modules import Rows, rows_of
from exporter.targets.onnx_graph.nodes import add, constant, hand_over, insert, replace
from exporter.targets.onnx_graph.schemes import static_input

if TYPE_CHECKING:
    import onnx_ir as ir

WHOLE = Scheme(weight="int8", group=None)  # of a convolution whose input stays in float
Range = tuple[float, float]
Ranges = Callable[[list[str]], Mapping[str, Range]]  # of values by their names, on what is calibrated on


def patches_as_products(model: ir.Model) -> None:
    """Makes a product of each convolution whose patches do not overlap, its weight [K, N] under the same name."""
    for node in [node for node in model.graph if _is_of_patches(node)]:
        _as_product(model, node)


def convolutions(model: ir.Model) -> list[ir.Node]:
    """The nodes that convolve with a constant float weight of their own."""
    return [node for node in model.graph if node.op_type == "Conv" and _weight(node) is not None]


def name_convolutions(nodes: list[ir.Node], modules: Mapping[str, Rows]) -> dict[str, ir.Node]:
    """The nodes by the modules whose weights they have."""
    known = {rows.hashes.tobytes(): name for name, rows in modules.items()}
    found = {known.get(rows_of(_matrix(node)).hashes.tobytes()): node for node in nodes}
    return {name: node for name, node in found.items() if name is not None}


def quantize_convolutions(model: ir.Model, schemes: list[tuple[ir.Node, Scheme]], ranges: Ranges) -> None:
    """Gives each convolution its scheme, which is int8 per channel with a float or a static input.

    `ranges` finds those of outputs that no static range of a later layer covers.
    """
    ends = [(node, _quantized(model, node, scheme)) for node, scheme in schemes]
    outputs = [end for (_, end), (_, scheme) in zip(ends, schemes, strict=True) if scheme.input == "static"]
    _round_outputs(model, list(dict.fromkeys(outputs)), ranges)


def _is_of_patches(node: ir.Node) -> bool:
    weight = _weight(node)
    if node.op_type != "Conv" or weight is None:
        return False
    _, channels, *kernel = weight.shape
    return (
        len(kernel) == 2
        and max(kernel) > 1
        and _numbers(node, "strides", [1, 1]) == kernel
        and not any(_numbers(node, "pads", [0]))
        and _numbers(node, "dilations", [1, 1]) == [1, 1]
        and _numbers(node, "group", [1]) == [1]
        and _sides(node) is not None
        and channels > 0
    )


def _sides(node: ir.Node) -> tuple[int, int] | None:
    """Height and width of a convolution's output, where they are numbers of the graph."""
    shape = node.outputs[0].shape
    if shape is None:
        return None
    height, width = shape[2], shape[3]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _as_product(model: ir.Model, node: ir.Node) -> None:
    weight, sides = _weight(node), _sides(node)
    assert weight is not None
    assert sides is not None
    outputs, channels, height, width = weight.shape
    (rows, columns), (operand, value, *bias) = sides, node.inputs
    assert value is not None
    name = str(value.name)

    def shaped(operand: Any, sizes: list[int], label: str) -> Any:
        shape = constant(model, f"shape_{'_'.join(map(str, sizes))}", np.array(sizes, np.int64))
        return insert(node, "Reshape", [operand, shape], label=label)[0]

    pieces = shaped(operand, [-1, channels, rows, height, columns, width], "pieces")
    patches = insert(node, "Transpose", [pieces], {"perm": [0, 2, 4, 1, 3, 5]}, label="patches")[0]
    patches = shaped(patches, [-1, rows * columns, channels * height * width], "rows")
    matrix = np.ascontiguousarray(weight.reshape(outputs, -1).T)
    value.name = f"{name}/convolution"
    product = insert(node, "MatMul", [patches, add(model, name, matrix)], label="product")[0]
    if bias and bias[0] is not None:
        product = insert(node, "Add", [product, bias[0]], label="bias")[0]
    turned = insert(node, "Transpose", [product], {"perm": [0, 2, 1]}, label="turned")[0]
    shape = constant(model, f"shape_-1_{outputs}_{rows}_{columns}", np.array([-1, outputs, rows, columns], np.int64))
    replace(node, "Reshape", [turned, shape], {})


def _weight(node: ir.Node) -> Floats | None:
    """A convolution's own constant weight [N, C, ...], else None."""
    value = node.inputs[1] if node.op_type == "Conv" else None
    if value is None or not value.is_initializer() or value.const_value is None or len(value.uses()) > 1:
        return None
    return None if value.const_value.dtype.name != "FLOAT" else value.const_value.numpy()


def _matrix(node: ir.Node) -> Floats:
    weight = _weight(node)
    assert weight is not None
    return np.ascontiguousarray(weight.reshape(len(weight), -1))


def _numbers(node: ir.Node, name: str, usual: list[int]) -> list[int]:
    if name not in node.attributes:
        return usual
    value = node.attributes[name].value
    return [int(value)] if isinstance(value, int) else [int(one) for one in value]


def _quantized(model: ir.Model, node: ir.Node, scheme: Scheme) -> ir.Value:
    """Rounds a convolution's weight, and its input where that is static; returns the value where its output ends."""
    import torch

    weight = _weight(node)
    assert weight is not None
    operand, value, *others = node.inputs
    assert operand is not None
    assert value is not None
    name = str(value.name)
    rounded = quantized(torch.from_numpy(_matrix(node)), scheme)
    codes, scales = rounded.codes.numpy()[:, 0].astype(np.int8), rounded.scales.numpy()[:, 0]
    bias = others[0].const_value.numpy() if others and others[0] is not None and others[0].const_value else None
    factors, bias = _normalized(node, len(codes), bias)
    codes = np.where(factors[:, None] < 0, -codes, codes).astype(np.int8)
    scales = np.maximum(np.abs(scales * factors), np.finfo(np.float32).tiny).astype(np.float32)
    scale, zeros = (
        add(model, f"{name}_scales", scales),
        constant(model, f"zeros_{len(codes)}", np.zeros(len(codes), np.int8)),
    )
    stored = add(model, f"{name}_Q8", codes.reshape(weight.shape))
    [floats] = insert(node, "DequantizeLinear", [stored, scale, zeros], {"axis": 0}, label="weight")
    operands = [operand, floats]
    if scheme.input == "static":
        operands[0] = static_input(model, node, operand, scheme)
    if bias is not None:
        operands.append(_bias(model, node, name, bias, scales, scheme))
    replace(node, "Conv", operands, {key: one.value for key, one in node.attributes.items()})
    return _end(operands[1])


def _normalized(node: ir.Node, channels: int, bias: Floats | None) -> tuple[Floats, Floats | None]:
    """A batch normalization behind a convolution, taken out of the graph: factors [N] of its output, and its bias."""
    reader = _only_reader(node)
    if reader is None or reader.op_type != "BatchNormalization":
        return np.ones(channels, np.float32), bias
    held = [value.const_value for value in reader.inputs[1:] if value is not None and value.is_initializer()]
    if len(held) != 4 or any(one is None for one in held):
        return np.ones(channels, np.float32), bias
    gain, shift, mean, variance = (one.numpy().astype(np.float64) for one in held if one is not None)
    epsilon = reader.attributes["epsilon"].as_float() if "epsilon" in reader.attributes else 1e-5
    factors = gain / np.sqrt(variance + epsilon)
    moved = ((0.0 if bias is None else bias) - mean) * factors + shift
    graph = reader.graph
    assert graph is not None
    hand_over(reader.outputs[0], node.outputs[0])
    graph.remove(reader, safe=True)
    return factors.astype(np.float32), moved.astype(np.float32)


def _bias(model: ir.Model, node: ir.Node, name: str, bias: Floats, scales: Floats, scheme: Scheme) -> ir.Value:
    """In int32, in the product's own steps, where an integer kernel adds it; else as it is."""
    floats = add(model, f"{name}_bias", bias.astype(np.float32))
    if scheme.input != "static":
        return floats
    steps = np.float32(input_grid(scheme)[0]) * scales
    codes = np.rint(bias / steps.astype(np.float64))
    if np.abs(codes).max() >= INT32:
        return floats
    held = add(model, f"{name}_bias_Q32", codes.astype(np.int32))
    step = add(model, f"{name}_bias_scales", steps.astype(np.float32))
    return insert(node, "DequantizeLinear", [held, step], {"axis": 0}, label="bias")[0]


def _end(weight: ir.Value) -> ir.Value:
    """Where the output of the convolution with this weight ends: behind a ReLU that alone reads it."""
    [(node, _)] = weight.uses()
    reader = _only_reader(node)
    return reader.outputs[0] if reader is not None and reader.op_type == "Relu" else node.outputs[0]


def _only_reader(node: ir.Node) -> ir.Node | None:
    """The one node that reads a node's output, where no other does, and where it is no output of the graph."""
    readers = [user for user, _ in node.outputs[0].uses()]
    return readers[0] if len(readers) == 1 and not node.outputs[0].is_graph_output() else None


def _round_outputs(model: ir.Model, ends: list[ir.Value], ranges: Ranges) -> None:
    """Puts Q and DQ behind each; where a later layer rounds the value anyway, its readers share that layer's."""
    open_ones = []
    for end in ends:
        reader = next((user for user, _ in end.uses() if user.op_type == "QuantizeLinear"), None)
        if reader is None:
            open_ones.append(end)
            continue
        [(back, _)] = reader.outputs[0].uses()
        _read_instead(end, back.outputs[0])
    found = ranges([str(end.name) for end in open_ones]) if open_ones else {}
    for end in open_ones:
        _rounded(model, end, found[str(end.name)])


def _rounded(model: ir.Model, end: ir.Value, span: Range) -> None:
    low, high = min(span[0], 0.0), max(span[1], 0.0)
    scheme = Scheme(weight="int8", group=None, input="static", range=(low, high if high > 0 else max(-low, 1e-6)))
    step, zero, lowest, _ = input_grid(scheme)
    steps = add(model, f"{end.name}_scale", np.array(step, np.float32))
    zeros = add(model, f"{end.name}_zero_point", np.array(zero - lowest, np.uint8))
    first = next(iter(end.uses()), None)
    if first is None or end.is_graph_output():
        return
    codes = insert(first[0], "QuantizeLinear", [end, steps, zeros], label=f"codes_of{end.name}")
    back = insert(first[0], "DequantizeLinear", [codes[0], steps, zeros], label=f"rounded{end.name}")
    _read_instead(end, back[0])


def _read_instead(value: ir.Value, other: ir.Value) -> None:
    """Lets the readers of a value read another one that is made of it; the one that makes it apart."""
    for user, place in list(value.uses()):
        if user.op_type != "QuantizeLinear":
            user.replace_input_with(place, other)
