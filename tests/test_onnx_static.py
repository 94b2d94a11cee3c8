"""ONNX under a policy: what was simulated is what runs, in integer kernels, whichever way the graph was made."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from policied import INT8, answers, operators, rms, round_the_rest, run, static_policy, windows

from exporter.quantization.simulation import simulated
from exporter.scheme import Scheme
from exporter.targets.onnx_graph.session import OnnxDecoder
from exporter.targets.onnx_graph.traced import load_model


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
def test_all_static_is_what_was_simulated_in_integer_kernels(policied_models, policied, kind, symmetric):
    checkpoint, task = policied_models(kind)
    model = load_model(checkpoint, task, False)
    ids = windows(kind)
    policy = static_policy(model, ids[:2], symmetric)
    path, notes = policied(kind, "int8-static", policy)
    exact = answers(model, ids)
    round_the_rest(model, policy)
    with simulated(model, policy):
        expected = answers(model, ids)
    got = run(kind, path, ids)
    assert got.shape == exact.shape
    assert_same(got, expected, exact)
    assert share(notes) == 100
    assert "kept from it" not in notes
    assert operators(path)["MatMulNBits"] == 0


def test_padding_and_other_lengths_are_no_matter_to_an_encoder(policied_models, policied):
    checkpoint, task = policied_models("bert")
    model = load_model(checkpoint, task, False)
    policy = static_policy(model, windows("bert"))
    path, notes = policied("bert", "int8-static", policy)
    assert "not in the graph, which does without: pooler.dense" in notes
    ids = windows("bert", 3, 17)
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    round_the_rest(model, policy)
    with simulated(model, policy):
        expected = answers(model, ids, mask)
    np.testing.assert_allclose(run("bert", path, ids, mask)[1, :9], expected[1, :9], atol=1e-4)


def test_products_that_share_an_input_share_its_rounding(policied_models, policied):
    checkpoint, task = policied_models("bert")
    policy = static_policy(load_model(checkpoint, task, False), windows("bert"))
    path, _ = policied("bert", "int8-static", policy)
    assert (
        operators(path)["QuantizeLinear"] == 2 * 4
    )  # query, key and value; attention's output; and the two dense ones


def test_the_cache_gives_what_the_whole_gives_and_the_size_is_a_quarter(policied_models, policied):
    checkpoint, task = policied_models("tiny")
    model = load_model(checkpoint, task, False)
    ids = windows("tiny")
    path, _ = policied("tiny", "int8-static", static_policy(model, ids))
    with OnnxDecoder(path, 1) as runner:
        whole = runner.logits(ids[0].numpy())
        cached = [runner.prefill(ids[0, :30].numpy()), *(runner.step(int(token)) for token in ids[0, 30:])]
    np.testing.assert_allclose(cached, whole[29:], atol=1e-3)
    parameters = sum(p.numel() for p in model.parameters())
    assert path.stat().st_size < parameters * 1.03 + 400_000  # scales; the rotary tables and the graph


def test_layers_of_one_stacked_matrix_may_have_schemes_of_their_own(policied_models, policied):
    """A layer's query, key and value share their input, and each is what the policy says."""
    checkpoint, task = policied_models("tiny")
    model = load_model(checkpoint, task, False)
    ids = windows("tiny")
    policy: dict[str, Scheme | None] = dict(static_policy(model, ids[:2]))
    names = [f"model.layers.{layer}.self_attn.{part}_proj" for layer in range(3) for part in "qkv"]
    policy[names[0]] = None
    policy[names[4]] = policy[names[4]].model_copy(update={"range": (-1.0, 1.0)})
    exact = answers(model, ids)
    with simulated(model, policy):
        expected = answers(model, ids)
    path, notes = policied("tiny", "int8-static", policy)
    assert_same(run("tiny", path, ids), expected, exact)
    assert notes.endswith(f"kept from it: {names[0]}")
    assert 90 < share(notes) < 100


def test_what_is_kept_in_groups_or_in_float_is_named_and_counted(policied_models, policied):
    checkpoint, task = policied_models("gpt2")
    model = load_model(checkpoint, task, False)
    ids = windows("gpt2")
    policy: dict[str, Scheme | None] = dict(static_policy(model, ids))
    kept = {"transformer.h.0.mlp.c_proj": INT8, "transformer.h.1.mlp.c_fc": None, "lm_head": INT8}
    path, notes = policied("gpt2", "int8-static", policy | kept)
    assert operators(path)["MatMulNBits"] == 2
    assert operators(path)["GatherBlockQuantized"] == 1  # the tied head's: the table of positions does without
    # 64 x 64 x (3 + 1 + 4 + 4) in each of two layers, of which 64 x 256 twice.
    assert f"{(24 - 8) / 24:.0%} of the linear layers' multiplications run in integer kernels" in notes
    assert notes.endswith(f"kept from it: {', '.join(kept)}")
    round_the_rest(model, policy)
    with simulated(model, policy | kept):
        expected = answers(model, ids)
    # The kernels in groups round their inputs too, to 8 bits in groups, which no simulation knows.
    got = run("gpt2", path, ids)
    assert rms(got - expected) < 0.02 * rms(expected)
