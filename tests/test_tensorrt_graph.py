"""Graphs for TensorRT of tiny models: its own parser takes them, and with their types' rounding they are right."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import transformers as t
from onnx import helper
from tensorrt_parser import parse

from exporter.errors import BuildError
from exporter.linear import linear_layers
from exporter.policy import Scheme
from exporter.simulation import simulated
from exporter.targets.onnx_modules import module_rows
from exporter.targets.onnx_nodes import finish
from exporter.targets.tensorrt_graph import Graph, write_graph
from exporter.targets.tensorrt_lint import refused
from exporter.targets.tensorrt_proof import write_proof
from exporter.targets.tensorrt_quantize import cannot_express, quantize
from exporter.targets.traced_graph import load_model, trace_causal_lm
from exporter.types import CLASSIFICATION, FEATURES, GENERATION, Checkpoint, ExportRequest

TINY = Path(__file__).resolve().parent.parent / "models" / "tiny"
VOCABULARY = 120
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"vocab_size": VOCABULARY, "max_position_embeddings": 128}
GPT = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
MODELS = {
    "llama": (lambda: t.LlamaForCausalLM(t.LlamaConfig(**SIZES, num_key_value_heads=2)), GENERATION),
    "qwen2": (
        lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**SIZES, num_key_value_heads=2, tie_word_embeddings=True)),
        GENERATION,
    ),
    "gpt2": (lambda: t.GPT2LMHeadModel(t.GPT2Config(**GPT)), GENERATION),
    "bert": (lambda: t.BertModel(t.BertConfig(**SIZES)), FEATURES),
    "bert-classifier": (lambda: t.BertForSequenceClassification(t.BertConfig(**SIZES)), CLASSIFICATION),
}
PRECISIONS = ["fp32", "fp16", "bf16", "int8", "int8-weight"]
# Of the size of the answers. float16 has 11 bits, bfloat16 8; int8 is compared with its simulation in
# float32: where float16 moves an input over the middle between two codes, it takes the other one.
TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 4e-2, "int8": 8e-2, "int8-weight": 3e-2}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """models(kind): folder and task; "tiny" is the shipped one."""
    made = {"tiny": (TINY, GENERATION)}

    def get(kind):
        if kind not in made:
            torch.manual_seed(0)
            make, task = MODELS[kind]
            model, folder = make(), tmp_path_factory.mktemp(kind)
            with torch.no_grad():
                for weight in model.parameters():  # weights of 0.02 would leave the activations next to nothing
                    weight.add_(torch.randn_like(weight) * 0.1)
            model.save_pretrained(folder)
            made[kind] = folder, task
        return made[kind]

    return get


@pytest.fixture
def write(models, tmp_path, tmp_path_factory):
    """write(kind, precision): model.onnx and its Graph; the float graph is made once for each model."""

    def do(kind, precision, policy=None, windows=None, folder=None) -> tuple[Path, Graph]:
        checkpoint, task = (folder, GENERATION) if folder else models(kind)
        scratch = tmp_path_factory.getbasetemp() / f"{folder.name if folder else kind}-scratch"
        scratch.mkdir(exist_ok=True)
        calibration = None
        if windows is not None:
            calibration = tmp_path / "calibration"
            calibration.mkdir(exist_ok=True)
            np.save(calibration / "windows.npy", windows)
        request = ExportRequest(
            Checkpoint(checkpoint, task, kind, "0" * 64, 0), precision, tmp_path, scratch, 1,
            calibration=calibration, policy=policy,
        )  # fmt: skip
        return tmp_path / "model.onnx", write_graph(request, tmp_path / "model.onnx")

    return do


class Opened:
    """A graph in ONNX Runtime: one that rounds where the engine does, unless its types are float32 anyway."""

    def __init__(self, model: Path, precision: str) -> None:
        self.model = model
        if precision != "fp32":
            self.model = model.with_name("proof.onnx")
            write_proof(model, self.model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(self.model, options, providers=["CPUExecutionProvider"])
        self.shapes = {value.name: value.shape for value in self.session.get_inputs()}

    def __call__(self, ids, mask=None, steps=0):
        """[B, T] to answers; of a decoder, all but the last `steps` tokens first, then one after the other."""
        mask = np.ones_like(ids) if mask is None else mask
        past = {
            name: np.zeros((len(ids), shape[1], 0, shape[3]), np.float32)
            for name, shape in self.shapes.items()
            if name.startswith("past_key_values.")
        }
        outputs, parts = [value.name for value in self.session.get_outputs()], []
        for start, end in pairwise([0, *range(ids.shape[1] - steps, ids.shape[1] + 1)]):
            feeds = past | {"input_ids": ids[:, start:end], "attention_mask": mask[:, :end]}
            feeds["position_ids"] = np.maximum(mask.cumsum(-1) - 1, 0)[:, start:end]
            feeds["token_type_ids"] = np.zeros_like(ids)
            taken = {name: value for name, value in feeds.items() if name in self.shapes}
            answers = dict(zip(outputs, self.session.run(outputs, taken), strict=True))
            parts.append(answers.pop(outputs[0]))
            past = {name.replace("present.", "past_key_values."): value for name, value in answers.items()}
        return parts[0] if len(parts) == 1 else np.concatenate(parts, 1)


def some_ids(batch, length):
    return np.random.default_rng(length).integers(3, VOCABULARY, (batch, length))


def static_policy(model, ids):
    """Every linear layer in int8, its input in a signed range whose step float16 holds exactly."""
    most: dict[str, float] = {}

    def watch(name):
        def see(_, inputs):
            most[name] = max(most.get(name, 0.0), inputs[0].abs().max().item())

        return see

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in linear_layers(model).items()]
    with torch.no_grad():
        model(input_ids=torch.tensor(ids))
    for hook in hooks:
        hook.remove()
    tops = {name: float(np.float16(top / 127)) * 127 for name, top in most.items()}
    return {name: Scheme(weight="int8", input="static", range=(-top, top), signed=True) for name, top in tops.items()}


def expected(model, ids, mask=None):
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(np.ones_like(ids) if mask is None else mask)
        )
    return (out.last_hidden_state if "last_hidden_state" in out else out.logits).numpy()


def off(got, want):
    """The error's root mean square against the answers' own."""
    return float(np.sqrt(np.square(got - want).mean() / np.square(want).mean()))


def profile(name, axis):
    if name.startswith("past_key_values."):
        return {0: (1, 1, 4), 2: (0, 16, 64)}[axis]
    return ((1, 1, 4), (1, 16, 96))[axis]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["tiny", *MODELS])
def test_parsed_and_right_at_other_batches_and_lengths(models, write, kind, precision):
    folder, task = models(kind)
    model = load_model(folder, task, False)
    policy = static_policy(model, some_ids(4, 48)) if precision == "int8" else None
    path, graph = write(kind, precision, policy, some_ids(2, 32))
    onnx.checker.check_model(path)
    assert refused(path) == []
    assert parse(path) == []
    assert {node.domain for node in onnx.load(path).graph.node} == {""}
    assert not any("beyond" in line for line in graph.kept_float)
    assert (graph.int8_share == 1.0) if precision == "int8" else not graph.int8_share
    opened = Opened(path, precision)
    for batch, length in ((1, 1), (3, 7), (2, 40)):
        ids = some_ids(batch, length)
        with torch.no_grad(), simulated(model, policy or {}):
            want = expected(model, ids)
        got = opened(ids)
        if length > 1:
            assert off(got, want) < TOLERANCE[precision]
        if task == GENERATION and length > 1:
            assert off(opened(ids, steps=length // 2), got) < TOLERANCE[precision] / 2
    ids, mask = some_ids(2, 12), np.ones((2, 12), np.int64)
    mask[1, 5:] = 0
    got, alone = opened(ids, mask), opened(ids[1:, :5])
    assert off(got[1] if task == CLASSIFICATION else got[1, :5], alone[0]) < TOLERANCE[precision] / 2


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_builds_an_engine(models, write, kind, precision):
    """The parser takes an Attention in float32 that the builder has no kernels for."""
    folder, task = models(kind)
    policy = static_policy(load_model(folder, task, False), some_ids(2, 16)) if precision == "int8" else None
    path, _ = write(kind, precision, policy)
    assert parse(path, profile) == []


def test_types_of_inputs_and_outputs(write):
    path, _ = write("tiny", "fp16")
    graph = onnx.load(path).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    assert kinds["logits"] == onnx.TensorProto.FLOAT
    assert kinds["past_key_values.1.key"] == kinds["present.1.value"] == onnx.TensorProto.FLOAT16
    weights = [tensor for tensor in graph.initializer if np.prod(tensor.dims) > 1000]
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.FLOAT16}
    assert sum(node.op_type == "Attention" for node in graph.node) == 3


def test_statistics_and_tables_stay_in_float32(write):
    path, graph = write("tiny", "fp16")
    proto = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in proto.value_info}
    for node in proto.node:
        if node.op_type in ("Pow", "ReduceMean", "Sqrt", "Cos", "Sin"):
            assert kinds[node.output[0]] == onnx.TensorProto.FLOAT
            assert any(line.startswith(node.name) for line in graph.kept_float)
        if node.op_type == "MatMul":
            assert kinds.get(node.output[0]) == onnx.TensorProto.FLOAT16


def large(folder, scale):
    """A Llama whose first feed-forward block writes activations beyond float16's range."""
    torch.manual_seed(0)
    model = t.LlamaForCausalLM(t.LlamaConfig(**SIZES, num_key_value_heads=2))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
        model.model.layers[0].mlp.down_proj.weight.mul_(scale)
    model.save_pretrained(folder)
    return folder


def test_what_overflows_on_calibration_text_stays_in_float32(write, tmp_path):
    folder = large(tmp_path / "large", 3e5)
    model, ids = load_model(folder, GENERATION, False), some_ids(2, 24)
    path, careless = write("large", "fp16", folder=folder)
    assert any("not checked for overflow" in note for note in careless.notes)
    assert not np.isfinite(Opened(path, "fp16")(ids)).all()
    path, graph = write("large", "fp16", windows=some_ids(2, 32), folder=folder)
    kept = [line for line in graph.kept_float if "beyond float16" in line]
    assert any("layers.0/mlp/down_proj/MatMul" in line for line in kept)
    assert not any("layers.1/mlp/up_proj" in line for line in kept)
    assert any(note.startswith(f"{len(kept)} operators stay in float32") for note in graph.notes)
    assert parse(path) == []
    assert off(Opened(path, "fp16")(ids), expected(model, ids)) < TOLERANCE["fp16"]


def test_the_proof_rounds_where_onnxruntime_would_not(tmp_path):
    """2048 + 1 + 1 is 2048 in float16; onnxruntime drops the casts between two operators that it casts itself."""
    half = onnx.TensorProto.FLOAT16
    nodes = [helper.make_node("Add", ["x", "one"], ["a"]), helper.make_node("Add", ["a", "one"], ["b"])]
    nodes.append(helper.make_node("Cast", ["b"], ["y"], to=1))
    one = onnx.numpy_helper.from_array(np.array([1], np.float16), "one")
    x, y = helper.make_tensor_value_info("x", half, ["n"]), helper.make_tensor_value_info("y", 1, ["n"])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], [one]), opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    )
    onnx.save(model, tmp_path / "model.onnx")
    write_proof(tmp_path / "model.onnx", tmp_path / "proof.onnx")
    answers = [
        onnxruntime.InferenceSession(tmp_path / name).run(None, {"x": np.array([2048], kind)})[0][0]
        for name, kind in (("model.onnx", np.float16), ("proof.onnx", np.float32))
    ]
    assert answers == [2050, 2048]


def test_policies_that_cannot_be_had(write):
    with pytest.raises(BuildError, match="needs a policy with the ranges"):
        write("tiny", "int8")
    for scheme, said in (
        (Scheme(weight="int8", input="static", range=(-1.0, 2.0)), "signed"),
        (Scheme(weight="int8", input="dynamic"), "dynamic input"),
        (Scheme(weight="int4", group=32), "int4"),
    ):
        assert said in cannot_express("int8", scheme)
        with pytest.raises(BuildError, match="cannot express"):
            write("tiny", "int8", {"model.layers.0.mlp.up_proj": scheme})
    assert cannot_express("int8", Scheme(weight="int8", input="static", signed=True)) is None
    assert cannot_express("int8-weight", Scheme(weight="int8", group=64)) is None
    assert "takes no policy" in cannot_express("fp16", Scheme(weight="int8"))


def test_int8_weights_in_groups(models, write):
    folder, _ = models("llama")
    names = linear_layers(load_model(folder, GENERATION, False))
    path, _ = write("llama", "int8-weight", {name: Scheme(weight="int8", group=32) for name in names})
    assert parse(path, profile) == []
    ids = some_ids(2, 9)
    assert off(Opened(path, "int8-weight")(ids), expected(load_model(folder, GENERATION, False), ids)) < 3e-2


def test_int8_is_what_was_simulated(tmp_path):
    """In float32 arithmetic and with scales that float16 holds: the same codes, so the same numbers."""
    torch.manual_seed(0)
    model = t.LlamaForCausalLM(t.LlamaConfig(**SIZES, num_key_value_heads=2))
    with torch.no_grad():
        for layer in linear_layers(model).values():  # weights on an int8 grid whose steps float16 holds exactly
            codes = torch.randint(-127, 128, layer.weight.shape)
            codes[:, 0] = 127
            layer.weight.copy_(codes * 2.0**-9)
    model.save_pretrained(tmp_path / "checkpoint")
    model = load_model(tmp_path / "checkpoint", GENERATION, False)
    policy, ids = static_policy(model, some_ids(2, 32)), some_ids(2, 24)
    trace_causal_lm(tmp_path / "checkpoint", tmp_path / "float.onnx")
    graph = ir.load(tmp_path / "float.onnx")
    share, _ = quantize(graph, policy, module_rows(model), True)
    assert share == 1.0
    finish(graph)
    ir.save(graph, tmp_path / "model.onnx")
    exact = expected(model, ids)
    with torch.no_grad(), simulated(model, policy):
        want = expected(model, ids)
    got = Opened(tmp_path / "model.onnx", "int8")(ids)
    errors, costs = (np.sqrt(np.square(this - want).mean(-1)) for this in (got, exact))
    assert np.median(errors / costs) < 1e-3
