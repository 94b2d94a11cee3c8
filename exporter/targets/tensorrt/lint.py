"""What TensorRT refuses in an ONNX graph, said before its parser does: which node, why, and what to do.

The parser says "Assertion failed: false" for most of it, and for some of it nothing: codes of uint8 are read as int8,
which changes their meaning. The operators are those that supports_operator() of TensorRT-RTX 1.7's parser denies, the
rest was tried with it; https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md has TensorRT's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.targets.onnx_graph.file import SMALL

if TYPE_CHECKING:
    import onnx

_DYNAMIC = {"ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"}
_LACKING = _DYNAMIC | {
    "AffineGrid", "Bernoulli", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor",
    "CenterCropPad", "Col2Im", "Compress", "ConcatFromSequence", "CumProd", "DFT", "DeformConv", "Det", "ImageDecoder",
    "MaxRoiPool", "MaxUnpool", "MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss", "Optional",
    "OptionalGetElement", "OptionalHasElement", "RegexFullMatch", "SequenceAt", "SequenceConstruct", "SequenceEmpty",
    "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap", "SoftmaxCrossEntropyLoss", "SplitToSequence",
    "StringConcat", "StringNormalizer", "StringSplit", "SwiGLU", "TfIdfVectorizer", "Unique",
}  # fmt: skip
_ONNX_DOMAINS = ("", "ai.onnx")
_LACKING_TYPES = ("INT16", "UINT16", "UINT32", "UINT64", "STRING", "COMPLEX64", "COMPLEX128")
# Their inputs of a floating type must all have the same one: a strongly typed network casts nothing by itself.
_SAME_TYPES = {"Add", "Div", "Equal", "Gemm", "Greater", "Less", "MatMul", "Max", "Min", "Mul", "Pow", "Sub", "Concat"}
_FLOATS = ("FLOAT", "FLOAT16", "BFLOAT16")
_SHOWN = 20


def refused(model_onnx: Path) -> list[str]:
    """A line for each thing that TensorRT refuses or misreads; [] for a graph that its parser should take.

    Weights are not read, beyond zero points; those in a file of their own need not be there.
    """
    import onnx

    model = onnx.load(model_onnx, load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(_without_weights(model)).graph
    infos = (*inferred.input, *inferred.value_info, *inferred.output)
    kinds = {info.name: onnx.TensorProto.DataType.Name(info.type.tensor_type.elem_type) for info in infos}
    kinds |= {tensor.name: onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in model.graph.initializer}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = [line for node in model.graph.node for line in _node(node, kinds, constants)]
    for info in (*model.graph.input, *model.graph.output):
        kind = kinds.get(info.name, "")
        if kind in _LACKING_TYPES:
            found.append(f"{info.name}: TensorRT has no tensors of {kind}; export it as INT64, INT32 or a float")
    more = len(found) - _SHOWN
    return found if more <= 0 else [*found[:_SHOWN], f"and {more} more of these"]


def _node(node: onnx.NodeProto, kinds: dict[str, str], constants: dict[str, onnx.TensorProto]) -> Iterator[str]:
    name = f"{node.name or node.output[0]} ({node.op_type})"
    if node.domain not in _ONNX_DOMAINS:
        yield (
            f"{name}: an operator of {node.domain}, which TensorRT has no plugin for; export plain ONNX, "
            "as the targets tensorrt and tensorrt-rtx do"
        )
    elif node.op_type in _DYNAMIC:
        yield (
            f"{name}: TensorRT has no integer operators of ONNX, dynamic quantization included; quantize with static "
            "ranges in Q/DQ pairs (precision int8), or the weights alone (int8-weight)"
        )
    elif node.op_type in _LACKING:
        yield f"{name}: TensorRT's parser has no such operator; export the model without it"
    elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        yield from _zero_point(node, name, kinds, constants)
    elif node.op_type == "Attention" and len([output for output in node.output if output]) > 1:
        yield f"{name}: TensorRT's Attention has one output; concatenate the past before it"
    elif node.op_type == "Attention" and any(attribute.name == "softmax_precision" for attribute in node.attribute):
        yield f"{name}: TensorRT's Attention has no softmax_precision; leave the attribute out, or cast its inputs"
    elif node.op_type in _SAME_TYPES:
        mixed = sorted({kinds[value] for value in node.input if kinds.get(value) in _FLOATS})
        if len(mixed) > 1:
            yield f"{name}: its inputs are {' and '.join(mixed)}; a strongly typed network needs a Cast between them"


def _zero_point(
    node: onnx.NodeProto, name: str, kinds: dict[str, str], constants: dict[str, onnx.TensorProto]
) -> Iterator[str]:
    import onnx

    zero = node.input[2] if len(node.input) > 2 else ""
    codes = kinds.get(node.output[0] if node.op_type == "QuantizeLinear" else node.input[0], "")
    if kinds.get(zero, codes) == "UINT8" or (not zero and node.op_type == "QuantizeLinear" and codes != "INT8"):
        yield (
            f"{name}: codes of UINT8, which TensorRT reads as INT8; quantize to INT8 with zero point 0 "
            "(a policy's scheme with 'signed: true')"
        )
    elif not zero:
        return
    elif zero not in constants:
        yield f"{name}: its zero point is computed; TensorRT takes the constant 0 only"
    elif (
        constants[zero].data_location != onnx.TensorProto.EXTERNAL and onnx.numpy_helper.to_array(constants[zero]).any()
    ):
        yield (
            f"{name}: asymmetric, its zero point is not 0; TensorRT takes symmetric ranges only "
            "(a policy's scheme with 'signed: true', or a range [-high, high])"
        )


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its large initializers declared as inputs: shape inference serializes all that it is given."""
    import onnx
    from onnx import helper

    graph = onnx.GraphProto(name=model.graph.name, node=model.graph.node, input=model.graph.input)
    graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > SMALL or tensor.data_location == onnx.TensorProto.EXTERNAL:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        else:
            graph.initializer.append(tensor)
    known = {entry.domain for entry in model.opset_import}  # inference stops at a domain that is not imported
    foreign = [helper.make_opsetid(domain, 1) for domain in sorted({node.domain for node in graph.node} - known)]
    return onnx.ModelProto(ir_version=model.ir_version, opset_import=[*model.opset_import, *foreign], graph=graph)
