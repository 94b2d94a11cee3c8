"""What layers lose when they are quantized, and the choice that is made of it, on the model that exporter ships."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from exporter.checkpoint.linear import linear_layers, weight_of
from exporter.checkpoint.model import load_model
from exporter.checkpoint.problem import problem_type
from exporter.measure.classification import compare_answers
from exporter.quantization.cost import SIZE, Costs
from exporter.quantization.knapsack import fewest
from exporter.quantization.layer import Layer
from exporter.quantization.ranking import rank
from exporter.quantization.selection import choose
from exporter.quantization.sensitivity import LossMeter
from exporter.quantization.simulation import simulated
from exporter.quantization.statistics import watched
from exporter.scheme import Scheme
from exporter.types import CLASSIFICATION, REGRESSION

INT4 = Scheme(weight="int4", group=32, symmetric=False)
INT8 = Scheme(weight="int8", group=32)
DYNAMIC = Scheme(weight="int8", input="dynamic")
LAST = "model.layers.2.mlp.down_proj"


@pytest.fixture(scope="module")
def windows(tiny):
    ids = AutoTokenizer.from_pretrained(tiny)((tiny / "calib.txt").read_text(encoding="utf-8"))["input_ids"]
    return torch.tensor(ids[:512]).view(4, 128)


@pytest.fixture
def model(tiny):
    return load_model(tiny, "text-generation", "float32").eval()


@pytest.fixture
def layers(model):
    found = linear_layers(model).items()
    return {name: Layer(tuple(weight_of(one).shape), (INT4, INT8, None)) for name, one in found if name != "lm_head"}


def ranked(meter, layers):
    return rank(meter, layers, {}, lambda done, total: None)


def test_layers_that_read_the_same_tensor_are_one_group(model, windows):
    groups = LossMeter(model, "text-generation", windows).groups
    attention, mlp = "model.layers.0.self_attn.", "model.layers.0.mlp."
    assert groups[:4] == [
        (attention + "q_proj", attention + "k_proj", attention + "v_proj"),
        (attention + "o_proj",),
        (mlp + "gate_proj", mlp + "up_proj"),
        (mlp + "down_proj",),
    ]
    assert groups[-1] == ("lm_head",)
    assert len(groups) == 13


@pytest.mark.parametrize("name", [LAST, "model.layers.1.self_attn.q_proj", "lm_head"])
def test_blocks_that_are_not_run_again_change_nothing(model, windows, name):
    """The KL of the whole model's own forward passes, without a meter's short cuts."""
    loss = LossMeter(model, "text-generation", windows).loss({name: INT4})
    with torch.inference_mode():
        expected = model(input_ids=windows).logits.log_softmax(-1)
        with simulated(model, {name: INT4}):
            got = model(input_ids=windows).logits.log_softmax(-1)
    kl = (expected.exp() * (expected - got)).sum(-1, dtype=torch.float64).mean()
    assert loss == pytest.approx(float(kl), rel=1e-3)
    assert loss > 1e-5


def test_of_an_engine_that_rounds_answers_that_is_simulated(model, windows):
    name, seen = "model.layers.0.mlp.down_proj", []
    with (
        torch.inference_mode(),
        watched({name: model.get_submodule(name)}, lambda _, fed: seen.append(fed.abs().max())),
    ):
        model(input_ids=windows)
    most = float(max(seen))
    scheme = Scheme(weight="int8", input="static", range=(-most, most))
    plain = LossMeter(model, "text-generation", windows).loss({name: scheme})
    meter = LossMeter(model, "text-generation", windows, rounds_outputs=True)

    def rounded(module, inputs, output):
        step = (output.max() - output.min()) / 255
        return (output / step).round() * step

    layer = model.get_submodule(name)
    with torch.inference_mode(), simulated(model, {name: scheme}):
        hook = layer.register_forward_hook(rounded)
        try:
            got = [model(input_ids=window[None]).logits[0].log_softmax(-1) for window in windows]
        finally:
            hook.remove()
    with torch.inference_mode():
        expected = [model(input_ids=window[None]).logits[0].log_softmax(-1) for window in windows]
    kl = [(a.exp() * (a - b)).sum(-1).mean() for a, b in zip(expected, got, strict=True)]
    assert meter.loss({name: scheme}) == pytest.approx(float(sum(kl) / len(kl)), rel=0.05)
    assert meter.loss({name: scheme}) > 1.05 * plain > 0
    assert meter.loss({name: INT4}) == LossMeter(model, "text-generation", windows).loss({name: INT4})


def test_the_model_is_as_it_was_after_a_measurement(model, windows, layers):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    meter = LossMeter(model, "text-generation", windows)
    meter.loss({name: Scheme(weight="int4", group=32, input="dynamic") for name in layers})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert meter.loss({}) == 0
    with torch.inference_mode():
        assert torch.equal(model(input_ids=windows).logits, load_logits(model, windows))


def load_logits(model, windows):
    fresh = type(model)(model.config)
    fresh.load_state_dict(model.state_dict())
    return fresh.eval()(input_ids=windows).logits


def test_a_spoiled_layer_is_found(model, windows, layers):
    """A few columns of one layer are made a thousand times larger, and their inputs smaller: the same function."""
    up, down = linear_layers(model)["model.layers.1.mlp.up_proj"], linear_layers(model)["model.layers.1.mlp.down_proj"]
    with torch.no_grad():
        up.weight[::32] /= 1000
        down.weight[:, ::32] *= 1000
    groups = ranked(LossMeter(model, "text-generation", windows), layers)
    assert groups[0].names == ("model.layers.1.mlp.down_proj",)
    assert groups[0].loss > 5 * groups[1].loss


def test_a_layer_is_looked_at_without_those_that_share_its_input(model, windows, layers):
    """One input in each group of a value projection counts more: its errors grow, those of query and key do not."""
    value = linear_layers(model)["model.layers.0.self_attn.v_proj"]
    with torch.no_grad():
        value.weight[:, ::32] *= 30
    groups = ranked(LossMeter(model, "text-generation", windows), layers)
    assert groups[0].names == ("model.layers.0.self_attn.v_proj",)
    assert sorted(name for group in groups for name in group.names) == sorted(layers)
    whole = [group for group in groups if len(group.names) > 1]
    usual = sum(group.loss for group in groups) / sum(group.size for group in groups)
    assert whole, "groups that lose little are measured once"
    assert all(group.loss < 2 * usual * group.size for group in whole)
    shared = {name: Layer(one.shape, (DYNAMIC, INT8, None)) for name, one in layers.items()}
    together = ranked(LossMeter(model, "text-generation", windows), shared)
    assert {group.names for group in together} == set(LossMeter(model, "text-generation", windows).groups[:-1])


def raised(groups, schemes):
    return [one for one in groups if schemes[one.names[0]] != INT4]


def test_the_smallest_mix_that_fits_is_chosen(model, windows, layers):
    meter = LossMeter(model, "text-generation", windows)
    groups = ranked(meter, layers)
    lowest = meter.loss(dict.fromkeys(layers, INT4))
    as_they_are = choose(meter, layers, lambda: pytest.fail("not needed"), lowest, {}, SIZE)
    assert as_they_are.schemes == dict.fromkeys(layers, INT4)
    half = choose(meter, layers, lambda: groups, lowest / 2, {}, SIZE)
    assert half.fits
    assert half.loss == meter.loss(half.schemes) <= lowest / 2
    assert {half.schemes[one.names[0]] for one in raised(groups, half.schemes)} == {INT8}
    last = raised(groups, half.schemes)[-1]
    one_less = half.schemes | dict.fromkeys(last.names, INT4)
    assert meter.loss(one_less) > lowest / 2
    nothing_fits = choose(meter, layers, lambda: groups, 1e-12, {}, SIZE)
    assert nothing_fits.schemes == dict.fromkeys(layers, None)
    assert nothing_fits.loss == 0
    sizes = [SIZE.total(layers, choice.schemes) for choice in (as_they_are, half, nothing_fits)]
    numbers = sum(layer.size for layer in layers.values())
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[2]) == (numbers * (0.5 + 2.5 / 32), numbers * 4)


def test_a_mix_has_three_rungs_where_one_layer_loses_most(model, windows, layers):
    """Even 8 bits of it lose more than 4 bits of the least sensitive: it goes to float before these are raised."""
    value = linear_layers(model)["model.layers.0.self_attn.v_proj"]
    with torch.no_grad():
        value.weight[:, ::32] *= 300
    meter = LossMeter(model, "text-generation", windows)
    groups = ranked(meter, layers)
    budget = meter.loss({name: None if name.endswith("0.self_attn.v_proj") else INT4 for name in layers}) / 10
    mixed = choose(meter, layers, lambda: groups, budget, {}, SIZE)
    assert mixed.schemes["model.layers.0.self_attn.v_proj"] is None
    assert set(mixed.schemes.values()) == {INT4, INT8, None}
    assert mixed.loss <= budget


def test_the_mix_follows_what_schemes_cost(model, windows, layers):
    """The same losses: what costs nothing more is raised first, and what costs much last."""
    meter = LossMeter(model, "text-generation", windows)
    groups = ranked(meter, layers)
    budget = meter.loss(dict.fromkeys(layers, INT4)) * 0.8
    down = {name for name in layers if name.endswith("down_proj")}
    shapes = {layers[name].shape for name in down}
    assert shapes.isdisjoint(layers[name].shape for name in layers.keys() - down)
    for of_down, of_others in ((0.0, 1.0), (1e9, 1.0)):
        table = {shape: of_down if shape in shapes else of_others for shape in {one.shape for one in layers.values()}}
        times = Costs("ms per token", lambda shape, scheme, t=table: t[shape] * (1 + (scheme is not INT4)))
        chosen = choose(meter, layers, lambda: groups, budget, {}, times)
        taken = {name for name, scheme in chosen.schemes.items() if scheme != INT4}
        assert chosen.fits
        assert taken
        assert taken <= down or down <= taken if of_down == 0 else not taken & down


def test_of_the_worst_the_loss_at_the_next_rung_is_measured(model, windows, layers):
    meter = LossMeter(model, "text-generation", windows)
    groups = ranked(meter, layers)
    for group in groups[:10]:
        assert group.losses[1:] == (pytest.approx(meter.loss(dict.fromkeys(group.names, INT8), windows=1)), 0.0)
    ratios = {round(group.losses[1] / group.losses[0], 9) for group in groups[10:]}
    assert len(ratios) == 1, "the others' is foretold by the median"
    assert 0 < ratios.pop() < 0.1


@pytest.mark.parametrize("foretold", [1.0, 0.01], ids=["as the groups alone", "as no group alone"])
def test_how_many_groups_must_be_raised_is_found_with_few_simulations(foretold):
    """Losses that do not add up, and an order whose losses say little: the answer is that of trying every place."""
    rng = np.random.default_rng(0)
    alone = np.sort(rng.lognormal(0, 1.5, 120))[::-1]
    true = alone**foretold * rng.lognormal(0, 0.4, 120)
    seen = []

    def loss(raised):
        seen.append(raised)
        return float(true[raised:].sum() ** 0.8)

    every = [loss(raised) for raised in range(len(alone) + 1)]
    seen.clear()
    for share in (0.05, 0.3, 0.7, 0.95):
        expected = next(raised for raised, value in enumerate(every) if value <= share * every[0])
        assert fewest(alone.tolist(), share * every[0], (every[0], every[-1]), loss) == (expected, every[expected])
    assert len(seen) <= 4 * (5 if foretold == 1 else 3 * 7)  # halving 120 places takes 7 each


def test_without_float_as_a_last_resort_the_best_is_said_not_to_fit(model, windows, layers):
    meter = LossMeter(model, "text-generation", windows)
    layers = {name: Layer(layer.shape, (INT4, INT8)) for name, layer in layers.items()}
    choice = choose(meter, layers, lambda: ranked(meter, layers), 1e-12, {}, SIZE)
    assert not choice.fits
    assert choice.schemes == dict.fromkeys(layers, INT8)
    assert choice.loss == meter.loss(dict.fromkeys(layers, INT8))


def test_rounded_weights_of_a_better_method_take_the_place_of_the_nearest(model, windows):
    meter = LossMeter(model, "text-generation", windows)
    own = weight_of(linear_layers(model)[LAST]).clone()
    assert meter.loss({LAST: INT4}, {LAST: own}) == pytest.approx(0, abs=1e-9)


def test_an_encoder_is_measured_by_its_embeddings(tmp_path, windows):
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    model = BertModel(BertConfig(vocab_size=2048, **sizes)).eval()
    meter = LossMeter(model, "feature-extraction", windows)
    names = [name for name in linear_layers(model) if "pooler" not in name]
    loss = meter.loss(dict.fromkeys(names, INT4))
    assert 1e-6 < loss < 0.2
    assert meter.loss(dict.fromkeys(names, INT8)) < loss / 20


@pytest.mark.parametrize(
    ("settings", "unit"),
    [
        ({"num_labels": 1}, "standard deviations"),
        ({"num_labels": 3}, "KL, nats"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "KL, nats"),
        ({"num_labels": 3, "problem_type": "regression"}, "standard deviations"),
    ],
)
def test_a_classifiers_loss_is_what_its_answers_will_be_judged_by(windows, settings, unit):
    """The figures that an artifact is gated by, of the same answers: one logit's softmax would lose nothing, ever."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    model = BertForSequenceClassification(BertConfig(vocab_size=2048, **sizes, **settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.15)
    meter = LossMeter(model, CLASSIFICATION, windows)
    names = list(linear_layers(model))
    schemes = dict.fromkeys(names, INT4)
    pieces = windows.reshape(-1, 64)
    with torch.inference_mode():
        expected = model(input_ids=pieces).logits.numpy()
        with simulated(model, schemes):
            got = model(input_ids=pieces).logits.numpy()
    problem = problem_type({"problem_type": model.config.problem_type, "num_labels": model.config.num_labels})
    figures = compare_answers(problem, expected, got)
    figure = figures["regression_error" if problem == REGRESSION else "kl"]
    loss = meter.loss(schemes)
    assert loss == pytest.approx(figure.value, rel=1e-2)
    assert loss > 1e-4
    assert meter.loss(dict.fromkeys(names, INT8)) < loss / 2
    assert meter.unit == unit
