"""What layers lose, estimated from gradients, beside what a simulation of each of them measures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import SMALL, last_json
from test_sensitivity import INT4, INT8, LAST, layers, model, windows

from exporter.checkpoint.linear import linear_layers, weight_of
from exporter.quantization.layer import Layer
from exporter.quantization.ranking import rank, rank_by_estimates
from exporter.quantization.sensitivity import LossMeter
from exporter.scheme import Scheme
from exporter.types import CLASSIFICATION, FEATURES, GENERATION

layers, model, windows = layers, model, windows
STATIC = Scheme(weight="int8", input="static", range=(-20, 20))


def both(meter, schemes):
    """Of each group: its estimate, and what its simulation on all windows loses."""
    groups = [tuple(name for name in names if name in schemes) for names in meter.groups]
    groups = [names for names in groups if names]
    told = meter.estimates(groups, schemes, {}, lambda done, total: None)
    measured = [meter.loss({name: schemes[name] for name in names}) for names in groups]
    return groups, np.array([loss for loss, _ in told]), np.array(measured)


def correlation(a, b):
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return np.corrcoef(*ranks)[0, 1]


def agree(estimated, measured):
    """Each within a factor of 4 and most within 2, and the order much alike: what an order is wanted for."""
    told = measured > 1e-7  # a pooler's loss is none
    estimated, measured = estimated[told], measured[told]
    ratios = estimated / measured
    assert 0.25 < ratios.min() < ratios.max() < 4, ratios
    assert 0.5 < np.median(ratios) < 2, ratios
    assert correlation(estimated, measured) > 0.5


@pytest.mark.parametrize("scheme", [INT4, STATIC], ids=["weights", "inputs"])
def test_a_decoder(model, windows, scheme):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    meter = LossMeter(model, GENERATION, windows)
    names = [name for name in linear_layers(model) if name != "lm_head"]
    _, estimated, measured = both(meter, dict.fromkeys(names, scheme))
    agree(estimated, measured)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in linear_layers(model).values())


def bert(head, **settings):
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 128}
    found = getattr(transformers, head)(transformers.BertConfig(vocab_size=2048, **sizes, **settings)).eval()
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.15)
    return found


@pytest.mark.parametrize(
    ("task", "head", "settings"),
    [
        (FEATURES, "BertModel", {}),
        (CLASSIFICATION, "BertForSequenceClassification", {"num_labels": 3}),
        (CLASSIFICATION, "BertForSequenceClassification", {"num_labels": 1}),
        (CLASSIFICATION, "BertForSequenceClassification", {"num_labels": 3, "problem_type": "regression"}),
        (
            CLASSIFICATION,
            "BertForSequenceClassification",
            {"num_labels": 3, "problem_type": "multi_label_classification"},
        ),
        ("token-classification", "BertForTokenClassification", {"num_labels": 5}),
        ("question-answering", "BertForQuestionAnswering", {}),
    ],
)
def test_what_answers_otherwise(windows, task, head, settings):
    """Rounded coarsely, so that one layer's harm is above what a few dozen answers can tell apart."""
    found = bert(head, **settings)
    meter = LossMeter(found, task, windows)
    names = [name for group in meter.groups for name in group]
    with torch.no_grad():  # layers of very different harm
        for number, name in enumerate(names):
            weight_of(linear_layers(found)[name])[:, 0] *= 1 + 3 * (number % 4)
    _, estimated, measured = both(LossMeter(found, task, windows), dict.fromkeys(names, INT4))
    agree(estimated, measured)


def test_pairs_of_an_encoder_and_a_decoder_are_estimated(tmp_path):
    import text2text_models as made

    found = made.random("Bart")
    rows = torch.from_numpy(np.random.default_rng(0).integers(4, 250, (4, 128)))
    meter = LossMeter(found, "text2text-generation", rows)
    names = [name for group in meter.groups for name in group if name != "lm_head"]
    _, estimated, measured = both(meter, dict.fromkeys(names, INT4))
    agree(estimated, measured)


def test_the_order_is_that_of_the_simulation_and_the_worst_are_simulated(model, windows, layers):
    value = linear_layers(model)["model.layers.0.self_attn.v_proj"]
    with torch.no_grad():
        weight_of(value)[:, ::32] *= 8
    meter = LossMeter(model, GENERATION, windows)
    groups, about = rank_by_estimates(meter, layers, {}, lambda done, total: None)
    simulated = rank(meter, layers, {}, lambda done, total: None)
    assert groups[0].names == simulated[0].names == ("model.layers.0.self_attn.v_proj",)
    assert groups[0].loss == pytest.approx(simulated[0].loss)
    assert sorted(name for group in groups for name in group.names) == sorted(layers)
    assert about["how"] == "estimated"
    assert about["simulated"] == 10
    assert 0.5 < about["scale"] < 2
    assert about["rank_correlation"] > 0.7


def test_layers_are_told_apart_without_another_pass(model, windows):
    asked = {name: Layer(tuple(weight_of(one).shape), (INT4, INT8, None)) for name, one in linear_layers(model).items()}
    meter = LossMeter(model, GENERATION, windows)
    [names] = [group for group in meter.groups if "model.layers.0.self_attn.v_proj" in group]
    schemes = {name: asked[name].choices[0] for name in names}
    [(whole, alone)] = meter.estimates([names], schemes, {}, lambda done, total: None)
    assert set(alone) == set(names)
    assert max(alone.values()) < whole * 1.5
    assert meter.estimates([(LAST,)], {LAST: INT8}, {}, lambda done, total: None)[0][0] < whole


def test_a_run_says_how_it_was_found(run_here, tmp_path):
    done = run_here(
        "run", "-m", "tiny", *SMALL, "-t", "onnx:int4-weight", "--calib-tokens", 2048, "--sensitivity", "estimated",
        "--max-kl", 8e-4,
        "--format", "json", "-o", tmp_path / "out",
    )  # fmt: skip
    report = last_json(done)
    record = report["results"][1]["build"]["quantization"]
    assert record["ranked"]["how"] == "estimated"
    assert report["results"][1]["status"] == "ok"
    assert "estimated from gradients" in (tmp_path / "out" / "report.md").read_text()
