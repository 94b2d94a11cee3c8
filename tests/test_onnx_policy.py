"""What a policy may ask of ONNX: grids that are reproduced, schemes that cannot be, layers in another form."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from policied import INT4, INT8, TINY, answers, operators, rms, run, windows

from exporter.checkpoint.linear import linear_layers, weight_of
from exporter.errors import BuildError
from exporter.quantization.grid import quantized, rounded
from exporter.quantization.simulation import simulated
from exporter.scheme import Scheme
from exporter.targets.onnx.quantize import quantize_by_policy
from exporter.targets.onnx.target import ONNX
from exporter.targets.onnx_graph.linear import find_matrices
from exporter.targets.onnx_graph.modules import module_rows
from exporter.targets.onnx_graph.schemes import quantize
from exporter.targets.onnx_graph.traced import load_model
from exporter.types import GENERATION, TOKENIZER_FILES, Checkpoint, ExportRequest

DYNAMIC = Scheme(weight="int8", input="dynamic")


@pytest.mark.parametrize("scheme", [INT4, INT4.model_copy(update={"symmetric": True}), INT8], ids=str)
def test_weights_on_the_grid_are_reproduced(tmp_path, policied_models, policied, scheme):
    """As after GPTQ or training: through the real export, from a checkpoint to the initializers."""
    model = load_model(TINY, GENERATION, False)
    layers = linear_layers(model)
    for name, layer in layers.items():
        if name != "lm_head":
            weight_of(layer).copy_(rounded(weight_of(layer).clone(), scheme))
    folder = tmp_path / "rounded"
    model.save_pretrained(folder)
    for file in TOKENIZER_FILES:
        if (TINY / file).is_file():
            shutil.copyfile(TINY / file, folder / file)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "out").mkdir()
    policy = dict.fromkeys(layers, scheme) | {"lm_head": INT8}
    checkpoint = Checkpoint(folder, GENERATION, "rounded", "0" * 64, 0)
    ONNX.export(
        ExportRequest(checkpoint, "int4-weight", tmp_path / "out", tmp_path / "scratch", threads=1, policy=policy)
    )
    graph = onnx.load(tmp_path / "out" / "onnx" / "model.onnx").graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in tensors:  # scales take half of the space in the file
            assert tensors[node.input[0]].dtype == np.float16
            tensors[node.output[0]] = tensors[node.input[0]].astype(np.float32)
    wanted = {name: weight_of(layer).numpy() for name, layer in layers.items() if name != "lm_head"}
    checked = 0
    for node in graph.node:
        if node.op_type != "MatMulNBits" or node.input[1].startswith("model.embed_tokens"):
            continue
        layer = re.search(r"layers\.\d+", node.input[1])[0]
        parts = re.findall(r"(\w+)\.weight_Q", node.input[1])  # one, or those that share their input
        expected = np.concatenate([next(w for n, w in wanted.items() if f"{layer}." in n and p in n) for p in parts])
        np.testing.assert_allclose(
            dequantized(node, tensors, scheme), expected, rtol=0, atol=1e-6 * np.abs(expected).max()
        )
        checked += len(parts)
    assert checked == len(wanted)


def dequantized(node: onnx.NodeProto, tensors: dict[str, np.ndarray], scheme: Scheme) -> np.ndarray:
    """A MatMulNBits node's weight [N, K], by its operator's documentation."""
    codes, scales = (tensors[name] for name in node.input[1:3])
    zeros = tensors[node.input[3]] if len(node.input) > 3 and node.input[3] else np.array(1 << (scheme.bits - 1))
    if scheme.bits == 4:
        codes = np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:2], -1)
        if zeros.ndim:
            zeros = np.stack([zeros & 15, zeros >> 4], -1).reshape(len(codes), -1)[:, : codes.shape[1]]
    zeros = zeros[..., None] if zeros.ndim else zeros
    return ((codes.astype(np.float32) - zeros) * scales.reshape(codes.shape[:2])[..., None]).reshape(len(codes), -1)


def test_a_dynamic_policy(policied_models, policied):
    checkpoint, task = policied_models("gpt2")
    model = load_model(checkpoint, task, False)
    ids = windows("gpt2")
    policy = dict.fromkeys(linear_layers(model), DYNAMIC) | {"transformer.h.0.attn.c_attn": None}
    path, _ = policied("gpt2", "int8-dynamic", policy)
    assert operators(path)["MatMulInteger"] == 8  # of nine with the head, which is the embedding too
    exact = answers(model, ids)
    with simulated(model, policy):
        cost = rms(answers(model, ids) - exact)
    assert 0.2 * cost < rms(run("gpt2", path, ids) - exact) < 5 * cost  # ONNX's scale is per tensor, not per row


STATIC = Scheme(weight="int8", input="static", range=(-1, 1))


@pytest.mark.parametrize(
    ("precision", "policy", "said"),
    [
        (
            "int8-static",
            None,
            "onnx:int8-static needs a policy with the ranges of its inputs; 'exporter run' makes one",
        ),
        (
            "int8-static",
            {"lm_head": STATIC.model_copy(update={"range": None})},
            "lm_head: its static input has no range",
        ),
        (
            "int8-static",
            {"lm_head": DYNAMIC},
            "cannot express int8 per channel dynamic input; it takes int8 per channel",
        ),
        ("int4-weight", {"lm_head": STATIC}, r"it takes int8 or int4 in groups of 16, 32, 64, 128, 256 with a float"),
        ("int8-weight", {"lm_head": INT4}, "it takes int8 in groups of 16, 32"),
        ("int4-weight", {"lm_head": Scheme(weight="int4", group=48)}, "cannot express int4 in groups of 48"),
        ("int4-weight", {"lm_head": Scheme(weight="int8")}, "cannot express int8 per channel; it takes"),
        ("fp16", {"lm_head": INT8}, "onnx:fp16 quantizes nothing and takes no policy; those that do: int8-weight"),
        ("int8-static", {"no.such.layer": STATIC}, "the checkpoint has no linear layer no.such.layer"),
        (
            "int4-weight",
            {"transformer.h.0.mlp.c_fc": Scheme(weight="int4", group=128)},
            "transformer.h.0.mlp.c_fc has 64 inputs, no multiple of the group 128",
        ),
    ],
)
def test_a_policy_that_cannot_be_is_said(policied, precision, policy, said):
    with pytest.raises(BuildError, match=said):
        policied("gpt2", precision, policy)


def test_the_schemes_that_a_search_chooses_from_can_be_expressed():
    for name, precision in ONNX.precisions.items():
        assert [ONNX.schemes(name, scheme) for scheme in precision.schemes] == [None] * len(precision.schemes)
    assert [name for name, precision in ONNX.precisions.items() if not precision.schemes] == ["fp32", "fp16", "bf16"]


def test_a_layer_that_the_graph_holds_in_another_form_is_named(policied_models):
    checkpoint, task = policied_models("gpt2")
    modules = module_rows(load_model(checkpoint, task, False))
    said = r"gives transformer.h.0.mlp.c_fc a scheme, but .* \(perhaps w is made of them\)"
    with pytest.raises(BuildError, match=said):
        quantize_by_policy(
            product_of(np.ones((8, 64), np.float32)), {"transformer.h.0.mlp.c_fc": INT8}, modules, decoder=True
        )


def test_stacked_layers_are_each_rounded_as_if_alone():
    """One of them lies on its grid, the other on none: what is on the grid stays."""
    codes = quantized(torch.randn(8, 64, generator=torch.Generator().manual_seed(0)), INT4)
    steps = ((codes.codes - codes.zeros[..., None]) * 0.6).trunc()  # no group spans its range
    on_grid = (steps * codes.scales[..., None]).reshape(8, 64).numpy()
    stacked = np.concatenate([on_grid, np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)])
    assert not np.allclose(rounded(torch.from_numpy(stacked), INT4)[:8], on_grid, atol=1e-3)
    model = product_of(stacked)
    [matrix] = find_matrices(model)
    quantize(model, replace(matrix, rows=(8, 4)), INT4)
    proto = ir.to_proto(model)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    np.testing.assert_allclose(dequantized(proto.graph.node[0], tensors, INT4)[:8], on_grid, atol=1e-6)


def product_of(weight: np.ndarray) -> ir.Model:
    """x @ weight.T"""
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    sizes = {"x": weight.shape[1], "y": weight.shape[0]}
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", sizes[name]]) for name in "xy")
    stored = numpy_helper.from_array(np.ascontiguousarray(weight.T), "w")
    return ir.from_proto(onnx.helper.make_model(onnx.helper.make_graph([node], "product", [x], [y], [stored])))
