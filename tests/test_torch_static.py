"""torch:int8-static: PT2E's codes, oneDNN's integer operators, and the policy's numbers."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from clients import PROMPT, ids
from safetensors.torch import load_file
from test_encoders import SIZES, tokenizer
from torch.utils._python_dispatch import TorchDispatchMode

from exporter.checkpoint.linear import linear_layers
from exporter.checkpoint.model import load_model
from exporter.errors import BuildError, JobError
from exporter.measure.samples import greedy
from exporter.pipeline.packing import pack
from exporter.quantization.grid import quantized, rounded, rounded_input
from exporter.quantization.policy import read_policy
from exporter.quantization.simulation import simulated
from exporter.runner import CachedRunner
from exporter.scheme import Scheme
from exporter.targets.torch.static import converted, static_linear
from exporter.targets.torch.target import TORCH
from exporter.types import CLASSIFICATION, FEATURES, GENERATION, Checkpoint, ExportRequest

INT8 = Scheme(weight="int8", input="static", range=(-1.0, 1.0))


def ranges(model, windows):
    """Min and max of what each linear layer is fed."""
    seen = {}

    def hook(name):
        def look(module, inputs):
            low, high = seen.get(name, (0.0, 0.0))
            seen[name] = min(low, inputs[0].min().item()), max(high, inputs[0].max().item())

        return look

    hooks = [layer.register_forward_pre_hook(hook(name)) for name, layer in linear_layers(model).items()]
    with torch.inference_mode():
        for window in windows:
            model(input_ids=window[None])
    for one in hooks:
        one.remove()
    return seen


def text(checkpoint, file, window=128, count=8):
    ids = transformers.AutoTokenizer.from_pretrained(checkpoint)(file.read_text())["input_ids"]
    return torch.tensor(ids[: window * count]).view(count, window)


def write(folder, checkpoint, task, policy):
    folder.mkdir()
    source = Checkpoint(checkpoint, task, "a test", "", 0)
    exported = TORCH.export(ExportRequest(source, "int8-static", folder, folder, 1, policy=policy))
    (folder / "manifest.json").write_text(json.dumps({"variant": "torch:int8-static", "task": task}))
    return exported


@pytest.fixture(scope="module")
def decoder(tiny, tmp_path_factory):
    """The tiny model with its second layer's down_proj and its lm_head in float: (folder, policy, Exported)."""
    model = load_model(tiny, GENERATION, "float32").eval()
    policy = {
        name: Scheme(weight="int8", input="static", range=found)
        for name, found in ranges(model, text(tiny, tiny / "calib.txt")).items()
    }
    policy |= {"lm_head": Scheme(weight="int8"), "model.layers.1.mlp.down_proj": None}
    folder = tmp_path_factory.mktemp("static") / "tiny"
    return folder, policy, write(folder, tiny, GENERATION, policy)


class Operators(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().partition(".")[0]
        self.seen[name] = self.seen.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


# torch.export copies its own tree specs by a way that torch deprecates; only torchao's lowering comes by there.
@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning")
@pytest.mark.parametrize("found", [(-2.5, 3.5), (-3.0, 3.0), (0.0, 2.0)], ids=["affine", "symmetric", "positive"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
def test_a_layer_is_what_torchao_lowers_it_to_and_what_the_grid_says(kind, bias, found):
    torch.manual_seed(0)
    layer = torch.nn.Linear(96, 64, bias=bias) if kind == "Linear" else transformers.pytorch_utils.Conv1D(64, 96)
    scheme = Scheme(weight="int8", input="static", range=found)
    inputs = torch.randn(2, 96) * 2  # beyond the range on both sides; two rows, as the lowering fixes them
    weight = (layer.weight if kind == "Linear" else layer.weight.T).detach()
    ours = static_linear(layer, scheme)
    assert torch.equal(ours.weight, quantized(weight, scheme).codes[:, 0].to(torch.int8))
    ours.pack()
    from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86  # warns, unless the target was first

    lowered = lower_pt2e_quantized_to_x86(converted(layer, scheme), (inputs,))
    assert [node.target.name() for node in lowered.graph.nodes if "onednn" in str(node.target)] == [
        "onednn::qlinear_pointwise"
    ]
    expected = torch.nn.functional.linear(rounded_input(inputs, scheme), rounded(weight, scheme), layer.bias)
    with torch.inference_mode():
        assert (ours(inputs) - lowered(inputs)).abs().max() < 1e-5
        assert (ours(inputs) - expected).abs().max() < 1e-5
        shaped = ours(inputs.repeat(6, 1).view(2, 3, 2, 96))
    assert torch.equal(shaped[1, 2], shaped[0, 0])
    assert shaped.shape == (2, 3, 2, 64)


def test_a_decoder_answers_as_simulated_at_other_lengths_and_batches(tiny, decoder):
    folder, policy, _ = decoder
    model = load_model(tiny, GENERATION, "float32").eval()
    static = {name: scheme for name, scheme in policy.items() if scheme and scheme.input == "static"}
    ids = text(tiny, tiny / "eval.txt", 37, 3)
    with torch.inference_mode():
        exact = model(input_ids=ids).logits
        with simulated(model, static):
            told = model(input_ids=ids).logits
    with TORCH.open(folder, 1) as runner:
        answer = torch.from_numpy(runner.batch(ids.numpy(), np.ones_like(ids)))
        single = torch.from_numpy(runner.logits(ids[1].numpy()))
    # A sum that float32 rounds otherwise turns a code over here and there; the rounding itself costs ten times as much.
    assert (answer - told).abs().mean() < 0.1 * (exact - told).abs().mean()
    assert (single - told[1]).abs().mean() < 0.1 * (exact - told).abs().mean()


def test_the_cache_answers_as_without_it(tiny, decoder):
    [ids] = text(tiny, tiny / "eval.txt", 40, 1).numpy()
    with TORCH.open(decoder[0], 1) as runner:
        assert isinstance(runner, CachedRunner)
        whole = runner.logits(ids)
        cached = [runner.prefill(ids[:30]), *(runner.step(int(token)) for token in ids[30:])]
    assert np.abs(np.stack(cached) - whole[29:]).mean() < 0.01


def test_the_integer_operators_run_and_what_stays_in_float_is_said(decoder):
    folder, policy, exported = decoder
    with TORCH.open(folder, 1) as runner, Operators() as operators:
        runner.logits(np.arange(10, 20))
    assert operators.seen["onednn::qlinear_pointwise"] == len(policy) - 2
    assert sum(operators.seen.get(f"aten::{name}", 0) for name in ("linear", "mm", "addmm")) in (2, 0)
    assert runner.engine.endswith("onednn int8 in 20 layers")
    share, left = exported.notes
    assert share == "71.4% of the linear layers' multiplications in int8"
    assert left == "2 of 22 linear layers in float: model.layers.1.mlp.down_proj, lm_head"


def test_the_folder_holds_no_pickle_and_the_policy_reads_back(decoder):
    folder, policy, exported = decoder
    assert exported.weights == ("int8-static.safetensors", "policy.yaml")
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".jinja", ".md", ".safetensors", ".txt", ".yaml"}
    kept = read_policy(folder / "policy.yaml").resolved(policy)
    assert kept == policy | {"lm_head": None}  # which is in float here
    tensors = load_file(folder / "int8-static.safetensors")
    assert tensors["model.layers.0.mlp.up_proj.weight"].dtype == torch.int8
    assert ("lm_head.weight" in tensors) != ("model.embed_tokens.weight" in tensors)  # tied: one copy


def test_a_fresh_process_answers_the_same(decoder, tmp_path):
    folder, _, _ = decoder
    ids = np.arange(20, 60)
    with TORCH.open(folder, 1) as runner:
        here = runner.logits(ids)
    code = (
        "import sys, numpy; from pathlib import Path; from exporter.targets.torch.target import TORCH\n"
        "runner = TORCH.open(Path(sys.argv[1]), 1)\n"
        "numpy.save(sys.argv[2], runner.logits(numpy.arange(20, 60)))\n"
        "assert 'torchao.quantization.pt2e' not in sys.modules"  # what runs is PyTorch's own
    )
    subprocess.run([sys.executable, "-c", code, folder, tmp_path / "there.npy"], check=True)
    assert np.abs(np.load(tmp_path / "there.npy") - here).max() < 1e-4


def test_a_tied_output_in_int8_leaves_the_embedding_in_float(tiny, tmp_path):
    model = load_model(tiny, GENERATION, "float32").eval()
    [low_high] = [found for name, found in ranges(model, text(tiny, tiny / "calib.txt")).items() if name == "lm_head"]
    scheme = Scheme(weight="int8", input="static", range=low_high)
    write(tmp_path / "tied", tiny, GENERATION, {"lm_head": scheme})
    ids = text(tiny, tiny / "eval.txt", 20, 1)
    with torch.inference_mode():
        states = model.model(input_ids=ids).last_hidden_state
        expected = rounded_input(states, scheme) @ rounded(model.lm_head.weight, scheme).T
    with TORCH.open(tmp_path / "tied", 1) as runner:
        assert np.abs(runner.logits(ids[0].numpy()) - expected[0].numpy()).max() < 0.05


@pytest.mark.parametrize(
    ("architecture", "task"), [("BertModel", FEATURES), ("BertForSequenceClassification", CLASSIFICATION)]
)
def test_an_encoder(architecture, task, tmp_path):
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(transformers.BertConfig(**SIZES, num_labels=3)).eval()
    with torch.no_grad():  # the usual initialization makes all texts alike
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.15)
    model.save_pretrained(tmp_path / "bert")
    tokenizer(tmp_path / "bert", 500)
    windows = torch.randint(4, 184, (8, 50), generator=torch.Generator().manual_seed(1))
    policy = {
        name: None if "1.output" in name else Scheme(weight="int8", input="static", range=found)
        for name, found in ranges(model, windows).items()
    }
    exported = write(tmp_path / "out", tmp_path / "bert", task, policy)
    assert exported.notes[1].endswith("linear layers in float: encoder.layer.1.output.dense") or task == CLASSIFICATION
    ids = torch.randint(4, 184, (3, 17), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    with torch.inference_mode(), simulated(model, policy):
        out = model(input_ids=ids, attention_mask=mask)
    told = out.logits if task == CLASSIFICATION else out.last_hidden_state[mask.bool()]
    with TORCH.open(tmp_path / "out", 1) as runner:
        assert not isinstance(runner, CachedRunner)
        answer = torch.from_numpy(runner.batch(ids.numpy(), mask.numpy()))
    answer = answer if task == CLASSIFICATION else answer[mask.bool()]
    assert torch.nn.functional.cosine_similarity(answer, told).min() > 0.999


def damage(folder, name, keep):
    path = folder / name
    data = path.read_bytes()
    path.unlink() if keep is None else path.write_bytes(data[: int(len(data) * keep)])


@pytest.mark.parametrize(
    ("name", "keep"),
    [
        ("int8-static.safetensors", 0.5),
        ("int8-static.safetensors", 0),
        ("int8-static.safetensors", None),
        ("policy.yaml", 0.5),
        ("policy.yaml", None),
        ("config.json", 0.5),
    ],
)
def test_a_damaged_artifact_is_one_clear_line(decoder, tmp_path, name, keep):
    for path in decoder[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damage(tmp_path, name, keep)
    with pytest.raises(BuildError, match=r"cannot be opened .*export it again") as raised:
        TORCH.open(tmp_path, 1)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (None, "needs the ranges of the layers' inputs: give --policy FILE"),
        ({"lm_head": Scheme(weight="int8")}, "no layer has 'input: static' in the policy"),
        ({"lm_head": Scheme(weight="int8", input="static")}, "lm_head has a static input without a range"),
        (
            {"lm_head": INT8.model_copy(update={"weight": "int4", "group": 32})},
            "groups of 32 .*has int8 weights per channel",
        ),
        ({"lm_head": INT8.model_copy(update={"symmetric": False})}, "with zero points"),
        ({"lm_heat": INT8}, "unknown module 'lm_heat'; did you mean lm_head"),
    ],
    ids=["none", "weight-only", "no range", "int4", "zero points", "unknown"],
)
def test_a_policy_that_cannot_be_had_is_said(tiny, tmp_path, policy, said):
    with pytest.raises(JobError, match=said):
        write(tmp_path / "out", tiny, GENERATION, policy)


def test_it_is_listed_and_refuses_a_models_own_code(run_here):
    assert "int8-static" in run_here("targets").stdout
    assert "would run that code" in TORCH.check({"auto_map": {"AutoModel": "x"}}, GENERATION, "int8-static")


def test_its_program_runs_it_by_exporter(decoder, tiny, tmp_path):
    folder = shutil.copytree(decoder[0], tmp_path / "static")
    assert "run.py" in pack(TORCH, tiny, folder, GENERATION)
    prompt = np.array(transformers.AutoTokenizer.from_pretrained(tiny)(PROMPT)["input_ids"], np.int64)
    with TORCH.open(folder, 1) as runner:
        assert ids(folder) == greedy(runner, prompt, [0], 24)
