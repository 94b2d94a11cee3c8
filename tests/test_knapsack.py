"""The knapsack that mixes are chosen by, against all the mixes that there are."""

from itertools import pairwise, product
from math import inf

import numpy as np
import pytest

from exporter.quantization.cost import bytes_of
from exporter.quantization.knapsack import upgrades
from exporter.quantization.palette import palettes
from exporter.scheme import Scheme

pytestmark = pytest.mark.quick


def mixes(losses, costs):
    """(rungs, loss, cost) after each number of steps."""
    rungs = [0] * len(losses)
    steps = upgrades(losses, costs)
    for step in (None, *steps):
        if step is not None:
            assert step.saved == pytest.approx(losses[step.item][rungs[step.item]] - losses[step.item][step.rung])
            rungs[step.item] = step.rung
        yield (
            tuple(rungs),
            sum(of[at] for of, at in zip(losses, rungs, strict=True)),
            sum(of[at] for of, at in zip(costs, rungs, strict=True)),
        )


@pytest.mark.parametrize("seed", range(20))
def test_a_prefix_costs_at_most_its_last_step_more_than_the_best_mix(seed):
    """Of 5 groups at 3 rungs each, for every budget that a prefix keeps."""
    random = np.random.default_rng(seed)
    losses = [[*sorted(random.lognormal(0, 2, 2), reverse=True), 0.0] for _ in range(5)]
    costs = [np.cumsum(random.uniform(0.1, 3, 3)).tolist() for _ in range(5)]
    every = [
        (
            sum(of[at] for of, at in zip(losses, rungs, strict=True)),
            sum(of[at] for of, at in zip(costs, rungs, strict=True)),
        )
        for rungs in product(range(3), repeat=5)
    ]
    found = list(mixes(losses, costs))
    assert len({rungs for rungs, _, _ in found}) == len(found)
    assert found[-1][0] == (2,) * 5
    for (_, _, one_less), (_, loss, cost) in pairwise(found):
        best = min(price for lost, price in every if lost <= loss * (1 + 1e-12))
        assert one_less <= best * (1 + 1e-12) <= cost * (1 + 1e-9)


def test_a_mix_has_three_rungs_at_once():
    losses = [[9.0, 5.0, 0.0], [1.0, 0.01, 0.0], [0.1, 0.001, 0.0]]
    costs = [[1.0, 2.0, 8.0]] * 3
    assert [rungs for rungs, _, _ in mixes(losses, costs)] == [
        (0, 0, 0), (1, 0, 0), (1, 1, 0), (2, 1, 0), (2, 1, 1), (2, 2, 1), (2, 2, 2),
    ]  # fmt: skip


def test_a_rung_that_pays_too_little_is_passed_over():
    """Half of the loss for nine tenths of the cost of all of it."""
    assert [rungs for rungs, _, _ in mixes([[2.0, 1.0, 0.0]], [[0.0, 9.0, 10.0]])] == [(0,), (2,)]
    assert [rungs for rungs, _, _ in mixes([[2.0, 3.0, 0.0]], [[0.0, 1.0, 10.0]])] == [(0,), (2,)], "it loses more"


def test_what_costs_nothing_more_comes_first():
    """As where the quicker kernel is that of more bits."""
    steps = upgrades([[9.0, 1.0, 0.0], [2.0, 1.0, 0.0]], [[1.0, 2.0, 3.0], [5.0, 4.0, 6.0]])
    assert [(step.item, step.rung, step.worth) for step in steps] == [
        (1, 1, inf),
        (0, 1, 8.0),
        (0, 2, 1.0),
        (1, 2, 0.5),
    ]


def test_what_loses_nothing_alone_is_raised_last():
    steps = upgrades([[0.0, 0.0, 0.0], [0.0, 0.0], [1.0, 0.5]], [[1.0, 2.0, 3.0], [4.0, 4.0], [1.0, 2.0]])
    assert [(step.item, step.rung, step.saved) for step in steps] == [(2, 1, 0.5), (0, 2, 0.0)]


def test_steps_of_equal_worth_keep_their_order():
    """Rungs on a line, whose slopes differ in their last bits."""
    for thirds in np.random.default_rng(0).uniform(0.1, 10, 200):
        losses = [[3 * thirds, 2 * thirds, thirds, 0.0]] * 3
        found = [rungs for rungs, _, _ in mixes(losses, [[0.1, 0.2, 0.1 + 0.2, 0.4]] * 3)]
        for before, after in pairwise(found):
            assert all(a <= b for a, b in zip(before, after, strict=True))


def test_bytes_count_scales_zero_points_and_palettes():
    shape = (48, 96)
    numbers = 48 * 96
    assert bytes_of(shape, None) == 4 * numbers
    assert bytes_of(shape, Scheme(weight="int8")) == numbers + 48 * 4
    assert bytes_of(shape, Scheme(weight="int8", group=32)) == numbers + numbers / 32 * 2
    assert bytes_of(shape, Scheme(weight="int4", group=32, symmetric=False)) == numbers / 2 + numbers / 32 * 2.5
    assert bytes_of((48, 80), Scheme(weight="int4", group=64)) == 48 * (40 + 2 * 2)
    tables, indices = palettes(
        np.random.default_rng(0).normal(size=shape).astype(np.float32), Scheme(weight="palette4")
    )
    assert bytes_of(shape, Scheme(weight="palette4")) == indices.size / 2 + tables.size * 2
