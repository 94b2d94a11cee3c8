"""CLIP to three ONNX graphs: a tower for texts, a tower for pictures, and both with what their vectors make together.

The third is no trace: it is the nodes of the other two, as they are at any precision, and a few behind them. Its
weights are theirs, in the two files that a tower's weights are in. Clients know all three by their names: optimum's and
transformers.js' CLIPModel, CLIPTextModelWithProjection and CLIPVisionModelWithProjection.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.checkpoint.processor import picture_shape, read_processor
from exporter.form import PIXELS, ZERO_SHOT
from exporter.targets.onnx_graph.file import SMALL
from exporter.targets.onnx_graph.traced import BATCH, load_model, traced

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    import torch

    from exporter.targets.onnx_graph.tracing import Shapes

TEXT, VISION, JOINT = "text_model.onnx", "vision_model.onnx", "model.onnx"
# The names under which transformers.js fetches the joint graph's data, in two pieces: each is one tower's.
DATA = {TEXT: f"{JOINT}_data", VISION: f"{JOINT}_data_1"}
TEXTS, LENGTH, PICTURES = "text_batch_size", "sequence_length", "image_batch_size"
TEXT_VECTORS, PICTURE_VECTORS, SCALE = "text_embeds", "image_embeds", "logit_scale"
_TEXT_INPUTS = ("input_ids", "attention_mask")


def trace_towers(checkpoint: Path, folder: Path, *, trust_remote_code: bool = False, dynamo: bool = False) -> None:
    """Writes the three graphs as float32 (opset 18) into a folder. Raises BuildError.

    The tower of texts: input_ids and attention_mask int64 [batch_size, sequence_length] to text_embeds [batch_size, D];
    that of pictures: pixel_values float32 [batch_size, C, H, W] to image_embeds [batch_size, D].
    """
    model = load_model(checkpoint, ZERO_SHOT, trust_remote_code)
    model.set_attn_implementation("eager")
    width, scale = int(model.config.projection_dim), float(model.logit_scale.detach())
    shape = picture_shape(read_processor(checkpoint, trust_remote_code))
    read: Shapes = dict.fromkeys(_TEXT_INPUTS, (BATCH, "sequence_length"))
    seen: Shapes = {PIXELS: (BATCH, *shape)}
    text, vision = _towers(model)
    for name, tower, inputs, output in ((TEXT, text, read, TEXT_VECTORS), (VISION, vision, seen, PICTURE_VECTORS)):
        graph = traced(model, tower, inputs, {output: (BATCH, width)}, dynamo)
        save_tower(graph, folder / name)
    join(folder, scale)


def save_tower(model: ir.Model, path: Path) -> None:
    """Writes a tower's graph, its weights in the file that the joint graph has them from. The model is spent."""
    import onnx_ir as ir

    ir.save(model, path, external_data=DATA[path.name], size_threshold_bytes=SMALL)


def scale_of(folder: Path) -> float:
    """The logarithm of what cosines are multiplied by, of a folder's joint graph."""
    import onnx

    graph = onnx.load(folder / JOINT, load_external_data=False).graph
    [scale] = [one for one in graph.initializer if one.name == SCALE]
    return float(onnx.numpy_helper.to_array(scale))


def join(folder: Path, scale: float) -> None:
    """Writes the joint graph beside its towers: logits_per_image, logits_per_text, text_embeds and image_embeds.

    Vectors are of length 1 there, as CLIPModel answers them, and logits exp(`scale`) times their cosine.
    """
    import onnx
    from onnx import TensorProto, helper

    text, vision = (onnx.load(folder / name, load_external_data=False) for name in (TEXT, VISION))
    _apart(text.graph, vision.graph)
    width = vision.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    nodes = [*text.graph.node, *vision.graph.node]
    for made, length, vectors in (
        ("text/vectors", "text/length", TEXT_VECTORS),
        ("image/vectors", "image/length", PICTURE_VECTORS),
    ):
        nodes += [
            helper.make_node("ReduceL2", [made, "last_axis"], [length], name=length, keepdims=1),
            helper.make_node("Div", [made, length], [vectors], name=f"{length}/Div"),
        ]
    nodes += [
        helper.make_node("Transpose", [PICTURE_VECTORS], ["image/turned"], name="image/turned", perm=[1, 0]),
        helper.make_node("MatMul", [TEXT_VECTORS, "image/turned"], ["cosines"], name="cosines"),
        helper.make_node("Exp", [SCALE], ["scale"], name="scale"),
        helper.make_node("Mul", ["cosines", "scale"], ["logits_per_text"], name="logits_per_text"),
        helper.make_node("Transpose", ["logits_per_text"], ["logits_per_image"], name="logits_per_image", perm=[1, 0]),
    ]
    shapes = {
        "logits_per_image": [PICTURES, TEXTS],
        "logits_per_text": [TEXTS, PICTURES],
        TEXT_VECTORS: [TEXTS, width],
        PICTURE_VECTORS: [PICTURES, width],
    }
    _name_batches(text.graph, TEXTS)
    _name_batches(vision.graph, PICTURES)
    inputs = {value.name: value for graph in (text.graph, vision.graph) for value in graph.input}
    graph = helper.make_graph(
        nodes,
        "clip",
        [inputs[name] for name in ("input_ids", PIXELS, "attention_mask") if name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [
            *text.graph.initializer,
            *vision.graph.initializer,
            helper.make_tensor("last_axis", TensorProto.INT64, [1], [-1]),
            onnx.numpy_helper.from_array(np.array(scale, np.float32), SCALE),
        ],
    )
    imports = {one.domain: max(one.version, _version(text, one.domain)) for one in vision.opset_import}
    imports |= {one.domain: one.version for one in text.opset_import if one.domain not in imports}
    joint = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(*one) for one in imports.items()],
        ir_version=max(text.ir_version, vision.ir_version),
        producer_name=text.producer_name,
    )
    onnx.save(joint, folder / JOINT)


def _version(model: onnx.ModelProto, domain: str) -> int:
    return max((one.version for one in model.opset_import if one.domain == domain), default=0)


def _apart(text: onnx.GraphProto, vision: onnx.GraphProto) -> None:
    """Gives what both graphs call alike another name in the second, and their answers names of vectors as they are."""
    taken = {text.output[0].name: "text/vectors"}
    _rename(text, taken)
    both = _names(text) & _names(vision)
    _rename(vision, {name: f"vision/{name}" for name in both} | {vision.output[0].name: "image/vectors"})
    _name_nodes_apart(vision, {node.name for node in text.node if node.name})


def _names(graph: onnx.GraphProto) -> set[str]:
    made = {name for node in graph.node for name in node.output}
    return made | {one.name for one in graph.initializer} | {one.name for one in graph.input}


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(name, name) for name in values]
    for one in (*graph.initializer, *graph.input, *graph.output):
        one.name = names.get(one.name, one.name)


def _name_nodes_apart(graph: onnx.GraphProto, taken: set[str]) -> None:
    for node in graph.node:
        if node.name in taken:
            node.name = f"vision/{node.name}"


def _name_batches(graph: onnx.GraphProto, name: str) -> None:
    for value in graph.input:
        value.type.tensor_type.shape.dim[0].dim_param = name


def _towers(model: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """(input_ids, attention_mask) -> text_embeds, and pixel_values -> image_embeds, as their projections make them."""
    import torch

    class Text(torch.nn.Module):  # with the checkpoint's own names of its modules
        def __init__(self) -> None:
            super().__init__()
            self.text_model, self.text_projection = model.text_model, model.text_projection

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            ids, mask = tensors
            out: torch.Tensor = self.text_projection(
                self.text_model(input_ids=ids, attention_mask=mask, return_dict=True).pooler_output
            )
            return out

    class Vision(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision_model, self.visual_projection = model.vision_model, model.visual_projection

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            [pixels] = tensors
            out: torch.Tensor = self.visual_projection(
                self.vision_model(pixel_values=pixels, return_dict=True).pooler_output
            )
            return out

    return Text().eval(), Vision().eval()
