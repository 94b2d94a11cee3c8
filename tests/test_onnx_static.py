"""ONNX under a policy: what was simulated is what runs, in integer kernels, whichever way the graph was made."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper

from exporter.errors import BuildError
from exporter.grid import quantized, rounded
from exporter.linear import linear_layers, weight_of
from exporter.policy import Scheme
from exporter.simulation import simulated
from exporter.targets.onnx import ONNX
from exporter.targets.onnx_linear import find_matrices
from exporter.targets.onnx_modules import module_rows
from exporter.targets.onnx_quantize import quantize_by_policy
from exporter.targets.onnx_schemes import quantize
from exporter.targets.onnx_session import OnnxDecoder, OnnxRunner
from exporter.targets.traced_graph import load_model
from exporter.types import CLASSIFICATION, FEATURES, GENERATION, TOKENIZER_FILES, Checkpoint, ExportRequest

TINY = Path(__file__).resolve().parent.parent / "models" / "tiny"
INT8, INT4 = Scheme(weight="int8", group=32), Scheme(weight="int4", group=32, symmetric=False)
DYNAMIC = Scheme(weight="int8", input="dynamic")
VOCABULARY = 120  # of the random models


def random_model(folder: Path, kind: str) -> tuple[Path, str]:
    """A small model with random weights in every layer, saved; and its task."""
    import transformers as t

    torch.manual_seed(0)
    if kind == "gpt2":  # Conv1D, stored [K, N], and biases
        config = t.GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=64)
        model, task = t.GPT2LMHeadModel(config), GENERATION
    elif kind == "phi3":  # query, key and value stacked in the checkpoint, gate and up too
        config = t.Phi3Config(
            vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, original_max_position_embeddings=64, pad_token_id=0,
            tie_word_embeddings=False,
        )  # fmt: skip
        model, task = t.Phi3ForCausalLM(config), GENERATION
        for name in TOKENIZER_FILES:
            if (TINY / name).is_file():
                shutil.copyfile(TINY / name, folder / name)
    else:
        config = t.BertConfig(
            vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64,
        )  # fmt: skip
        classifier = kind == "bert-classifier"
        model = (t.BertForSequenceClassification if classifier else t.BertModel)(config)
        task = CLASSIFICATION if classifier else FEATURES
    with torch.no_grad():
        for parameter in model.parameters():  # weights of 0.02 would leave the activations next to nothing
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder, task


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """models(kind): a checkpoint's folder and task; "tiny" is the shipped one."""
    made = {"tiny": (TINY, GENERATION)}

    def get(kind):
        if kind not in made:
            made[kind] = random_model(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return get


def windows(kind: str, count: int = 4, length: int = 48) -> torch.Tensor:
    if kind == "tiny":
        from transformers import AutoTokenizer

        text = (TINY / "calib.txt").read_text(encoding="utf-8")[: count * length * 8]
        ids = AutoTokenizer.from_pretrained(TINY)(text)["input_ids"][: count * length]
        return torch.tensor(ids).reshape(count, length)
    return torch.randint(3, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(1))


def static_policy(model, ids, symmetric=False) -> dict[str, Scheme]:
    """Every linear layer int8 per channel, with the range of its inputs on `ids`."""
    seen: dict[str, tuple[float, float]] = {}

    def watch(name):
        def hook(module, inputs):
            low, high = seen.get(name, (0.0, 0.0))
            seen[name] = (min(low, inputs[0].min().item()), max(high, inputs[0].max().item()))

        return hook

    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in linear_layers(model).items()]
    with torch.no_grad():
        model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    top = {name: max(-low, high) for name, (low, high) in seen.items()}
    ranges = {name: (-top[name], top[name]) for name in seen} if symmetric else seen
    return {name: Scheme(weight="int8", input="static", range=ranges[name]) for name in seen}


@pytest.fixture
def export(models, tmp_path, tmp_path_factory):
    """export(kind, precision, policy): model.onnx and the notes; the float graph is made once for each model."""

    def write(kind, precision, policy):
        checkpoint, task = models(kind)
        scratch = tmp_path_factory.getbasetemp() / f"{kind}-scratch"
        scratch.mkdir(exist_ok=True)
        folder = tmp_path / f"{precision}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        request = ExportRequest(
            Checkpoint(checkpoint, task, kind, "0" * 64, 0), precision, folder, scratch, threads=1, policy=policy
        )
        notes = ONNX.export(request).notes
        return folder / "model.onnx", "\n".join(notes)

    return write


def round_tables(model) -> None:
    """What is only looked up gets 8 bits in every artifact; a policy, and so its simulation, does not speak of it."""
    products = {id(layer.weight) for layer in linear_layers(model).values()}
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and id(module.weight) not in products:
            module.weight.data.copy_(rounded(module.weight.data.clone(), INT8))


def answers(model, ids: torch.Tensor, mask: torch.Tensor | None = None) -> np.ndarray:
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids) if mask is None else mask)
    return (out.last_hidden_state if "last_hidden_state" in out else out.logits).numpy()


def run(kind: str, model: Path, ids: torch.Tensor, mask: torch.Tensor | None = None) -> np.ndarray:
    runner = (OnnxDecoder if kind in ("tiny", "gpt2", "phi3") else OnnxRunner)(model, 1)
    with runner:
        return runner.batch(ids.numpy(), (torch.ones_like(ids) if mask is None else mask).numpy())


def rms(difference: np.ndarray) -> float:
    return float(np.sqrt(np.square(difference).mean()))


def operators(model: Path) -> Counter:
    return Counter(node.op_type for node in onnx.load(model).graph.node)


def share(notes: str) -> int:
    return int(re.search(r"(\d+)% of the linear layers' multiplications", notes)[1])


def assert_same(got: np.ndarray, expected: np.ndarray, exact: np.ndarray) -> None:
    """An artifact's answers are the simulation's, whose rounding costs `expected - exact`.

    Both compute integers times scales in float32, with sums in another order. An input that is within that of the
    middle between two codes can take the other one; from there on the sequence differs by part of what rounding costs.
    So most positions must agree to float32's rounding, and all of them to a part of the cost. A wrong scale, zero point
    or range would show in every position.
    """
    off, cost = (np.sqrt(np.square(this - expected).mean(-1)) for this in (got, exact))
    assert cost.min() > 0
    assert np.median(off / cost) < 1e-3
    assert rms(got - expected) < 0.25 * rms(exact - expected)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", ["tiny", "gpt2", "phi3", "bert", "bert-classifier"])
def test_all_static_is_what_was_simulated_in_integer_kernels(models, export, kind, symmetric):
    checkpoint, task = models(kind)
    model = load_model(checkpoint, task, False)
    ids = windows(kind)
    policy = static_policy(model, ids[:2], symmetric)
    path, notes = export(kind, "int8-static", policy)
    exact = answers(model, ids)
    round_tables(model)
    with simulated(model, policy):
        expected = answers(model, ids)
    got = run(kind, path, ids)
    assert got.shape == exact.shape
    assert_same(got, expected, exact)
    assert share(notes) == 100
    assert "kept from it" not in notes
    assert operators(path)["MatMulNBits"] == 0


def test_padding_and_other_lengths_are_no_matter_to_an_encoder(models, export):
    checkpoint, task = models("bert")
    model = load_model(checkpoint, task, False)
    policy = static_policy(model, windows("bert"))
    path, notes = export("bert", "int8-static", policy)
    assert "not in the graph, which does without: pooler.dense" in notes
    ids = windows("bert", 3, 17)
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    round_tables(model)
    with simulated(model, policy):
        expected = answers(model, ids, mask)
    np.testing.assert_allclose(run("bert", path, ids, mask)[1, :9], expected[1, :9], atol=1e-4)


def test_products_that_share_an_input_share_its_rounding(models, export):
    checkpoint, task = models("bert")
    policy = static_policy(load_model(checkpoint, task, False), windows("bert"))
    path, _ = export("bert", "int8-static", policy)
    assert (
        operators(path)["QuantizeLinear"] == 2 * 4
    )  # query, key and value; attention's output; and the two dense ones


def test_the_cache_gives_what_the_whole_gives_and_the_size_is_a_quarter(models, export):
    checkpoint, task = models("tiny")
    model = load_model(checkpoint, task, False)
    ids = windows("tiny")
    path, _ = export("tiny", "int8-static", static_policy(model, ids))
    with OnnxDecoder(path, 1) as runner:
        whole = runner.logits(ids[0].numpy())
        cached = [runner.prefill(ids[0, :30].numpy()), *(runner.step(int(token)) for token in ids[0, 30:])]
    np.testing.assert_allclose(cached, whole[29:], atol=1e-3)
    parameters = sum(p.numel() for p in model.parameters())
    assert path.stat().st_size < parameters * 1.03 + 400_000  # scales; the rotary tables and the graph


def test_layers_of_one_stacked_matrix_may_have_schemes_of_their_own(models, export):
    """The builder stacks query, key and value: here they come apart again, and each is what the policy says."""
    checkpoint, task = models("tiny")
    model = load_model(checkpoint, task, False)
    ids = windows("tiny")
    policy: dict[str, Scheme | None] = dict(static_policy(model, ids[:2]))
    names = [f"model.layers.{layer}.self_attn.{part}_proj" for layer in range(3) for part in "qkv"]
    policy[names[0]] = None
    policy[names[4]] = policy[names[4]].model_copy(update={"range": (-1.0, 1.0)})
    exact = answers(model, ids)
    with simulated(model, policy):
        expected = answers(model, ids)
    path, notes = export("tiny", "int8-static", policy)
    assert_same(run("tiny", path, ids), expected, exact)
    assert notes.endswith(f"kept from it: {names[0]}")
    assert 90 < share(notes) < 100
    assert operators(path)["Concat"] == 2


def test_what_is_kept_in_groups_or_in_float_is_named_and_counted(models, export):
    checkpoint, task = models("gpt2")
    model = load_model(checkpoint, task, False)
    ids = windows("gpt2")
    policy: dict[str, Scheme | None] = dict(static_policy(model, ids))
    kept = {"transformer.h.0.mlp.c_proj": INT8, "transformer.h.1.mlp.c_fc": None, "lm_head": INT8}
    path, notes = export("gpt2", "int8-static", policy | kept)
    assert operators(path)["MatMulNBits"] == 2
    assert operators(path)["GatherBlockQuantized"] == 2  # the tied head's, and the table of positions
    # 64 x 64 x (3 + 1 + 4 + 4) in each of two layers, of which 64 x 256 twice.
    assert f"{(24 - 8) / 24:.0%} of the linear layers' multiplications run in integer kernels" in notes
    assert notes.endswith(f"kept from it: {', '.join(kept)}")
    round_tables(model)
    with simulated(model, policy | kept):
        expected = answers(model, ids)
    # The kernels in groups round their inputs too, to 8 bits in groups, which no simulation knows.
    got = run("gpt2", path, ids)
    assert rms(got - expected) < 0.02 * rms(expected)


@pytest.mark.parametrize("scheme", [INT4, INT4.model_copy(update={"symmetric": True}), INT8], ids=str)
def test_weights_on_the_grid_are_reproduced(tmp_path, models, export, scheme):
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
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    wanted = {name: weight_of(layer).numpy() for name, layer in layers.items() if name != "lm_head"}
    checked = 0
    for node in graph.node:
        if node.op_type != "MatMulNBits" or "lm_head" in node.name:
            continue
        layer = re.search(r"layers\.\d+", node.name)[0]
        parts = ["q_proj", "k_proj", "v_proj"] if "qkv" in node.name else [node.name.split("/")[-2]]
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


def test_a_dynamic_policy(models, export):
    checkpoint, task = models("gpt2")
    model = load_model(checkpoint, task, False)
    ids = windows("gpt2")
    policy = dict.fromkeys(linear_layers(model), DYNAMIC) | {"transformer.h.0.attn.c_attn": None}
    path, _ = export("gpt2", "int8-dynamic", policy)
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
def test_a_policy_that_cannot_be_is_said(export, precision, policy, said):
    with pytest.raises(BuildError, match=said):
        export("gpt2", precision, policy)


def test_the_schemes_that_a_search_chooses_from_can_be_expressed():
    for name, precision in ONNX.precisions.items():
        assert [ONNX.schemes(name, scheme) for scheme in precision.schemes] == [None] * len(precision.schemes)
    assert [name for name, precision in ONNX.precisions.items() if not precision.schemes] == ["fp32", "fp16"]


def test_a_layer_that_the_graph_holds_in_another_form_is_named(models):
    checkpoint, task = models("gpt2")
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
