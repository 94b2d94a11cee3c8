"""Mixtures of experts under a policy: each expert is a layer of it, in the model, the simulation and the artifact."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
import torch
from policied import round_the_rest

from bench.families.decoders import DECODERS
from bench.families.models import save_model
from exporter import Job, run
from exporter.checkpoint.experts import expert_layers, in_stacks, split_experts
from exporter.checkpoint.linear import linear_layers, weight_of
from exporter.checkpoint.model import load_model
from exporter.quantization.folds import find_folds
from exporter.quantization.gptq import round_weights
from exporter.quantization.hessians import hessians
from exporter.quantization.policy import Policy, read_policy
from exporter.quantization.sensitivity import input_groups
from exporter.quantization.simulation import simulated
from exporter.quantization.stacked import FEW, with_stacks
from exporter.quantization.statistics import collect
from exporter.report.table import value
from exporter.scheme import Scheme
from exporter.targets.onnx.layout import open_onnx
from exporter.types import GENERATION

INT4 = Scheme(weight="int4", group=32, symmetric=False)
QUICK = {"speed": False, "eval_tokens": 256, "calib_tokens": 2048, "threads": 1}
FAMILIES = ("mixtral", "qwen3moe", "olmoe", "granitemoe", "phimoe", "gptoss")
EXPERTS, UNCHOSEN = 4, 3


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    """A checkpoint whose experts have no biases."""
    folder = tmp_path_factory.mktemp("mixtral")
    save_model(DECODERS["mixtral"], folder)
    return folder


@pytest.fixture(scope="module")
def gptoss(tmp_path_factory):
    """One with biases and turned stacks, whose routers never choose the last expert."""
    folder = tmp_path_factory.mktemp("gptoss")
    model = save_model(DECODERS["gptoss"], folder)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.router.bias[UNCHOSEN] = -1e4
    model.save_pretrained(folder)
    return folder


def opened(folder):
    return split_experts(load_model(folder, GENERATION, "float32").eval())


def windows(count=4, length=48):
    return torch.randint(3, 2048, (count, length), generator=torch.Generator().manual_seed(1))


def answer(model):
    with torch.no_grad():
        return model(input_ids=windows()).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_become_layers_and_are_saved_as_they_came(family, tmp_path):
    whole = save_model(DECODERS[family], tmp_path)
    expected, before = answer(whole), {name: it.data_ptr() for name, it in whole.named_parameters()}
    model = split_experts(whole)
    layers = linear_layers(model)
    found = expert_layers(model)
    assert found.keys() < layers.keys()
    assert len(found) == 2 * 2 * EXPERTS
    last = list(found)[-1]
    assert re.fullmatch(r"model\.layers\.1\.\w+\.experts\.down_proj\.3", last)
    assert found[last] == last.removesuffix(".3")
    assert {layers[f"{stack}.0"].weight.data_ptr() for stack in found.values()} < set(before.values())  # no copy
    assert torch.allclose(answer(model), expected, atol=1e-4)

    changed = weight_of(layers[last])
    changed.zero_()
    with in_stacks(model):
        model.save_pretrained(tmp_path)
        assert {name: it.data_ptr() for name, it in model.named_parameters()} == before
    again = opened(tmp_path)
    assert linear_layers(again).keys() == linear_layers(model).keys() == layers.keys()
    for (name, ours), theirs in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert not changed.any()


def test_an_expert_that_no_token_chose_is_a_layer_too(gptoss):
    model = opened(gptoss)
    layers = expert_layers(model)
    unfed = {name for name in layers if name.endswith(f".{UNCHOSEN}")}
    groups = input_groups(model, GENERATION, windows()[0])
    assert {frozenset(group) for group in groups if group[0] in layers} == {
        frozenset(f"{stack}.{number}" for number in range(EXPERTS)) for stack in layers.values()
    }
    statistics = collect(model, windows(), lambda done, total: None)
    assert linear_layers(model).keys() - statistics.keys() == unfed
    assert not unfed & {name for fold in find_folds(model, windows()).folds for name in (fold.source, *fold.layers)}
    before = {name: weight_of(layer).clone() for name, layer in linear_layers(model).items()}
    done = round_weights(
        model, dict.fromkeys(layers, INT4), hessians(model, windows(), layers, 1 << 29, lambda done, total: None)
    )
    assert set(done) == layers.keys() - unfed
    changed = {name for name, layer in linear_layers(model).items() if not torch.equal(weight_of(layer), before[name])}
    assert changed == set(done)


def test_a_few_tokens_leave_no_range_of_their_own(gptoss):
    model = opened(gptoss)
    stack = "model.layers.0.mlp.experts.down_proj"
    own = {(f"{stack}.{number}", False): (-1.0 - number, 2.0) for number in range(3)} | {
        ("lm_head", False): (-9.0, 9.0)
    }
    found, wide = with_stacks(model, own, {f"{stack}.0": FEW, f"{stack}.1": FEW - 1, f"{stack}.2": FEW, "lm_head": 1})
    assert wide == 2
    assert found == own | {(f"{stack}.1", False): (-3.0, 2.0), (f"{stack}.3", False): (-3.0, 2.0)}


def row_of(report, precision):
    return next(row for row in report["results"] if row["precision"] == precision)


@pytest.fixture(scope="module")
def chosen(gptoss, tmp_path_factory):
    """The checkpoint with an idle expert at the precisions that choose a policy by themselves."""
    output = tmp_path_factory.mktemp("chosen") / "out"
    return output, run(Job(model=str(gptoss), target=("onnx:int4-weight", "onnx:int8-static"), output=output, **QUICK))


@pytest.mark.parametrize(("precision", "bits"), [("int4-weight", "int4"), ("int8-static", "int8")])
def test_a_chosen_policy_has_the_experts(chosen, precision, bits):
    output, report = chosen
    row = row_of(report, precision)
    assert row["status"] == "ok"
    assert all(gate["passed"] for gate in row["gates"])
    policy = read_policy(output / f"onnx-{precision}" / "policy.yaml")
    given = {name: scheme for name, scheme in policy.modules.items() if ".experts." in name}
    assert len(given) == 2 * 2 * EXPERTS
    assert {scheme.weight for scheme in given.values()} == {bits}
    # Routers and the scales of a narrow embedding's rows are what is wider.
    assert row["artifact"]["named_share"] > 0.97
    record = row["build"]["quantization"]
    # Other text, and in random weights a token that moves to another expert is much of the loss.
    assert record["loss"] / 5 < record["attempts"][-1]["kl"] < record["loss"] * 5
    wanted = {
        "int4-weight": "rounded 4 matrices of experts that no token chose to their nearest values",
        "int8-static": "ranges of 4 matrices of experts that fewer than 64 tokens chose: their stack's",
    }
    assert wanted[precision] in record["history"]
    graph = onnx.load(output / f"onnx-{precision}" / "onnx" / "model.onnx", load_external_data=False).graph
    kept = [tensor for tensor in graph.initializer if ".experts." in tensor.name and len(tensor.dims) > 1]
    assert not [tensor.name for tensor in kept if tensor.data_type == onnx.TensorProto.FLOAT and tensor.dims[-1] > 4]


def test_what_was_simulated_of_experts_is_what_the_artifact_does(mixtral, tmp_path):
    job = {"model": str(mixtral), "target": ("onnx:int4-weight",), "rounding": "nearest"}
    run(Job(**job, output=tmp_path / "out", **QUICK))
    policy = read_policy(tmp_path / "out" / "onnx-int4-weight" / "policy.yaml")
    schemes = policy.resolved(list(policy.modules))
    assert None not in schemes.values()
    model, ids = opened(mixtral), windows(1, 200)
    with torch.no_grad():
        exact = model(input_ids=ids).logits[0].numpy()
        round_the_rest(model, schemes)
        with simulated(model, schemes):
            expected = model(input_ids=ids).logits[0].numpy()
    with open_onnx(tmp_path / "out" / "onnx-int4-weight", 1) as runner:
        got = runner.logits(ids[0].numpy())
    # The kernels round inputs too; a token that this moves to another expert is far off, most are not.
    off, cost = (np.square(difference).mean(-1) for difference in (got - expected, expected - exact))
    assert np.median(off / cost) < 0.2**2


def test_a_policy_names_experts_and_a_format_with_stacks_says_that_they_stay(mixtral, tmp_path):
    static = Scheme(weight="int8", input="static")
    given = {"*": static, "*.experts.*": "float", "*.experts.down_proj.1": static, "lm_head": "float"}
    (tmp_path / "policy.yaml").write_text(Policy(modules=given).to_yaml(), encoding="utf-8")
    targets = ("onnx:int8-static", "torch:int8-static")
    job = Job(model=str(mixtral), target=targets, policy=tmp_path / "policy.yaml", output=tmp_path / "out", **QUICK)
    report = run(job)
    onnx_row, torch_row = report["results"][1:]
    record = onnx_row["build"]["quantization"]
    experts = {name: scheme for name, scheme in record["policy"].items() if ".experts." in name}
    assert {name for name, scheme in experts.items() if scheme} == {
        f"model.layers.{number}.mlp.experts.down_proj.1" for number in range(2)
    }
    note = "The policy gives 2 matrices of experts a scheme: torch:int8-static cannot, and keeps them in float."
    assert note in report["model"]["notes"]
    record = torch_row["build"]["quantization"]
    assert not [name for name in record["policy"] if ".experts." in name]
    assert "16 matrices of experts stay in float in this format" in record["history"]
    assert "experts in float, beside those layers: 4 stacks of matrices" in torch_row["reason"]
    assert np.isfinite(value(torch_row, "kl"))
