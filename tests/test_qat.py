"""Quantization-aware training on the shipped model: what is saved is what was trained, interrupted or not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from exporter.checkpoint.linear import linear_layers, weight_of
from exporter.errors import BuildError, JobError
from exporter.quantization.grid import rounded
from exporter.quantization.simulation import simulated
from exporter.scheme import Scheme
from exporter.stages.prune.options import parse
from exporter.stages.prune.sparse import prune_to_zeros
from exporter.stages.train.options import QatOptions
from exporter.stages.train.qat import train, training_windows

INT4 = Scheme(weight="int4", group=32, symmetric=False)
STATIC = Scheme(weight="int8", input="static", range=(-1.5, 2.0))
FEW = {"steps": 12, "batch": 2, "window": 128, "save": 4}


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)


def schemes_of(folder, scheme):
    """A scheme for every layer but the tied head; static ranges are far too narrow, so that there is much to learn."""
    model, text = load(folder), (folder / "calib.txt").read_text(encoding="utf-8")
    schemes = dict.fromkeys(linear_layers(model), scheme) | {"lm_head": None}
    if scheme.range is None:
        return schemes

    def narrow(name):
        def hook(module, inputs):
            ends = 0.4 * inputs[0].min().item(), 0.4 * inputs[0].max().item()
            schemes[name] = schemes[name] and scheme.model_copy(update={"range": ends})

        return hook

    for name, layer in linear_layers(model).items():
        layer.register_forward_pre_hook(narrow(name))
    ids = AutoTokenizer.from_pretrained(folder)(text[:2000], return_tensors="pt")["input_ids"]
    log_probabilities(model, ids)
    return schemes


def windows_of(tiny, options):
    text = (tiny / "calib.txt").read_text(encoding="utf-8")
    return training_windows(AutoTokenizer.from_pretrained(tiny), text, 0, "calib.txt", QatOptions(**options), 1024)


def trained(tiny, tmp_path, options, schemes, progress=lambda done, total: None, first=None):
    """(what train returns, the folder that it wrote); `first`: of the text's windows only so many."""
    torch.set_num_threads(1)
    windows, options = windows_of(tiny, options)[:first], QatOptions(**options)
    folder = tmp_path / "trained"
    folder.mkdir()
    return train(load, tiny, schemes, windows, options, folder, tmp_path / "states", progress), folder


@pytest.fixture(scope="module")
def ids(tiny):
    text = (tiny / "eval.txt").read_text(encoding="utf-8")
    return torch.tensor(AutoTokenizer.from_pretrained(tiny)(text, verbose=False)["input_ids"][:1024]).view(2, 512)


def log_probabilities(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits.log_softmax(-1)


def kl(wanted, found):
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


@pytest.mark.parametrize("scheme", [INT4, STATIC], ids=["int4-weight", "int8-static"])
@pytest.mark.parametrize("lora", [{}, {"lora": 8}], ids=["whole", "lora"])
def test_what_is_saved_is_what_was_trained(tiny, tmp_path, ids, scheme, lora):
    schemes = schemes_of(tiny, scheme)
    rate = {"lr": 3e-4 if lora else 3e-5 if scheme is INT4 else 1e-4}
    seen = []
    made, folder = trained(tiny, tmp_path, FEW | lora | rate, schemes, lambda done, total: seen.append((done, total)))
    assert seen == [(step, 12) for step in range(1, 13)]
    model, float_model = load(folder), load(tiny)
    stored = load_file(folder / "model.safetensors")
    assert stored.keys() == load_file(tiny / "model.safetensors").keys()  # no factor, no step is left in it
    for name, layer in linear_layers(model).items():
        if schemes[name] is not None:
            weight = weight_of(layer)
            assert (rounded(weight, scheme) - weight).abs().max() <= 1e-6 * weight.abs().max()
            assert not torch.equal(weight, rounded(weight_of(linear_layers(float_model)[name]), scheme))
    wanted = log_probabilities(float_model, ids)
    with simulated(float_model, schemes):
        before = kl(wanted, log_probabilities(float_model, ids))
    with simulated(model, made["schemes"]):
        after = kl(wanted, log_probabilities(model, ids))
    assert after < 0.9 * before
    curve = made["record"]["curve"]
    assert [point[0] for point in curve] == list(range(12))
    assert json.loads(json.dumps(made["record"]))["layers"] == 21
    for name in ("tokenizer.json", "config.json", "generation_config.json"):
        assert (folder / name).is_file()
    if scheme is INT4:
        assert made["schemes"] == schemes
        return
    for name, learned in made["schemes"].items():
        if learned is not None:
            assert learned.range[0] < 0 < learned.range[1]
            assert learned.range != schemes[name].range


@pytest.mark.parametrize("scheme", [INT4, STATIC], ids=["int4-weight", "int8-static"])
@pytest.mark.parametrize("lora", [{}, {"lora": 8}], ids=["whole", "lora"])
def test_the_loss_is_that_of_the_artifacts_simulation(tiny, tmp_path, scheme, lora):
    options = {"steps": 1, "batch": 2, "window": 128, "kd": 0.5, "lr": 1e-12} | lora  # too slow to learn anything
    made, folder = trained(tiny, tmp_path, options, schemes_of(tiny, scheme), first=2)
    ids, model = windows_of(tiny, options)[:2], load(folder)
    with simulated(model, made["schemes"]):
        found = log_probabilities(model, ids)[:, :-1]
    entropy = -found.gather(-1, ids[:, 1:, None]).mean().item()
    divergence = kl(log_probabilities(load(tiny), ids)[:, :-1], found)
    wanted = [0, 0.5 * divergence + 0.5 * entropy, divergence, entropy]
    assert list(made["record"]["curve"][0]) == pytest.approx(wanted, rel=1e-4)


def test_the_loss_goes_down(tiny, tmp_path):
    options = {"steps": 40, "batch": 2, "window": 64, "lr": 3e-5}
    made, _ = trained(tiny, tmp_path, options, schemes_of(tiny, INT4), first=2)
    kls = [point[2] for point in made["record"]["curve"]]
    assert sum(kls[-4:]) < 0.6 * sum(kls[:4])


def test_killed_and_run_again_is_as_never_killed(tiny, tmp_path):
    schemes = schemes_of(tiny, STATIC)
    whole, folder = trained(tiny, tmp_path, FEW | {"lora": 4, "lr": 1e-3}, schemes)
    script = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        sys.path.insert(0, "tests")
        from test_qat import FEW, STATIC, schemes_of, trained

        def progress(done, total):
            print(done, flush=True)
            time.sleep(0.2)

        tiny = Path("models/tiny")
        trained(tiny, Path(sys.argv[1]), FEW | {"lora": 4, "lr": 1e-3}, schemes_of(tiny, STATIC), progress)
        """
    )
    again = tmp_path / "again"
    again.mkdir()
    command = [sys.executable, "-c", script, again]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}) as run:
        assert run.stdout is not None
        assert int(next(line for line in run.stdout if line == "6\n")) == 6
        run.send_signal(signal.SIGKILL)
    assert [path.name for path in (again / "states").glob("step-*")] == ["step-00000004"]
    assert not list((again / "trained").iterdir())
    (again / "trained").rmdir()
    seen = []
    resumed, other = trained(tiny, again, FEW | {"lora": 4, "lr": 1e-3}, schemes, lambda done, total: seen.append(done))
    assert seen == list(range(5, 13))
    assert resumed["schemes"] == whole["schemes"]
    assert resumed["record"]["curve"] == whole["record"]["curve"]
    ours, theirs = load_file(other / "model.safetensors"), load_file(folder / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_gradient_checkpointing_changes_nothing(tiny, tmp_path):
    curves = []
    for on in (False, True):
        (tmp_path / str(on)).mkdir()
        options = {"steps": 3, "batch": 2, "window": 64, "checkpointing": on}
        made, _ = trained(tiny, tmp_path / str(on), options, schemes_of(tiny, INT4))
        curves.append([point[1] for point in made["record"]["curve"]])
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def test_a_tied_head_stays_in_float_and_is_named(tiny, tmp_path):
    schemes = schemes_of(tiny, INT4) | {"lm_head": INT4}
    made, folder = trained(tiny, tmp_path, {"steps": 2, "batch": 2, "window": 64}, schemes)
    assert made["record"]["shared"] == ["lm_head"]
    model = load(folder)
    head = model.lm_head.weight
    assert head is model.get_input_embeddings().weight
    assert not torch.allclose(rounded(head.detach(), INT4), head, rtol=1e-4, atol=1e-6)


def test_conv1d(tmp_path):
    torch.manual_seed(0)
    base = tmp_path / "gpt2"
    config = GPT2Config(vocab_size=96, n_positions=64, n_embd=64, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(base)
    options = QatOptions(steps=2, batch=1, window=32, lora=2)
    schemes = {"transformer.h.0.attn.c_attn": INT4, "transformer.h.0.mlp.c_fc": STATIC}
    folder = tmp_path / "trained"
    folder.mkdir()
    windows = torch.randint(96, (4, 32))
    train(load, base, schemes, windows, options, folder, tmp_path / "states", lambda done, total: None)
    layers, before = linear_layers(load(folder)), linear_layers(load(base))
    for name, scheme in schemes.items():
        weight = weight_of(layers[name])
        assert (rounded(weight, scheme) - weight).abs().max() <= 1e-6 * weight.abs().max()
    assert torch.equal(layers["transformer.h.0.mlp.c_proj"].weight, before["transformer.h.0.mlp.c_proj"].weight)


def test_a_diverged_training_leaves_nothing(tiny, tmp_path):
    with pytest.raises(
        BuildError, match=r"QAT diverged at step \d+: .* take a lower learning rate, such as --qat-lr 10"
    ):
        trained(tiny, tmp_path, FEW | {"lr": 100}, schemes_of(tiny, INT4))
    assert not list((tmp_path / "trained").iterdir())


def test_a_short_text_is_refused(tiny):
    tokenizer, options = AutoTokenizer.from_pretrained(tiny), QatOptions(window=128)
    with pytest.raises(JobError, match=r"short.txt has \d+ tokens, and one step .* 4 windows of 128: give a longer"):
        training_windows(tokenizer, "Too short to learn from.", 0, "short.txt", options, 1024)
    with pytest.raises(JobError, match="the model has 64 positions; give a smaller window"):
        training_windows(tokenizer, "x", 0, "x", options, 64)


@pytest.mark.parametrize(
    ("schemes", "message"),
    [
        ({"model.layers.0.mlp.up_prj": INT4}, "did you mean model.layers.0.mlp.up_proj"),
        ({"model.layers.0.mlp.up_proj": None}, "leaves every layer in float"),
        ({"model.layers.0.mlp.up_proj": Scheme(weight="int4", group=48)}, "256 inputs, no multiple of the group 48"),
        ({"model.layers.0.mlp.up_proj": Scheme(weight="int8", input="static")}, "a static input without a range"),
    ],
)
def test_schemes_that_do_not_fit(tiny, tmp_path, schemes, message):
    with pytest.raises(JobError, match=message):
        trained(tiny, tmp_path, FEW, schemes)


@pytest.mark.parametrize("lora", [{}, {"lora": 4}], ids=["whole", "lora"])
def test_zeros_stay_zeros(tiny, tmp_path, lora):
    """Of rounded layers, and of those that stay in float."""
    base = load(tiny)
    prune_to_zeros(base, parse("magnitude-layer:2:4"), None, lambda done, total: None)
    pruned = tmp_path / "pruned"
    shutil.copytree(tiny, pruned, ignore=shutil.ignore_patterns("adapter"))
    base.save_pretrained(pruned)
    schemes = schemes_of(tiny, INT4) | {"model.layers.0.mlp.up_proj": None}
    _, folder = trained(pruned, tmp_path, {"steps": 3, "batch": 2, "window": 64, "lr": 1e-3} | lora, schemes)
    before, after = linear_layers(base), linear_layers(load(folder))
    for name, layer in before.items():
        if name != "lm_head":
            assert bool((weight_of(after[name])[weight_of(layer) == 0] == 0).all()), name
            assert lora or not torch.equal(weight_of(after[name]), weight_of(layer))
