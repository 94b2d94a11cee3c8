"""Weighted k-means in one dimension."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.targets.coreml.palette import palettes

pytestmark = pytest.mark.quick
WEIGHT = np.random.default_rng(0).standard_normal((32, 256)).astype(np.float32)


def values(weight, bits, rows, importance=None):
    tables, indices = palettes(weight, bits, rows, importance)
    assert tables.shape == (len(weight) // rows, 1 << bits)
    assert (np.diff(tables) >= 0).all()
    return np.take_along_axis(np.repeat(tables, rows, 0), indices.astype(np.int64), 1)


@pytest.mark.parametrize(("bits", "least"), [(4, 0.00950), (6, 0.00070)])  # of a normal distribution: Max, 1960
def test_it_is_near_the_best_that_there_is(bits, least):
    error = np.square(values(WEIGHT, bits, 16) - WEIGHT).mean()
    assert error < 1.05 * least


def test_what_counts_more_is_nearer():
    importance, weight = np.ones(256, np.float32), WEIGHT.copy()
    importance[:8] = 1000
    weight[:, :8] *= 0.1
    plain, weighted = (np.square(values(weight, 4, 16, it) - weight).mean(0)[:8].mean() for it in (None, importance))
    assert weighted < 0.5 * plain


@pytest.mark.parametrize("weight", [np.zeros((16, 8), np.float32), np.ones((16, 8), np.float32)])
def test_few_values_are_kept(weight):
    assert np.array_equal(values(weight, 4, 16), weight)


def test_a_palette_s_own_values_are_kept():
    table = np.linspace(-1, 1, 16).astype(np.float16).astype(np.float32)
    weight = np.random.default_rng(1).choice(table, (16, 64))
    assert np.abs(values(weight, 4, 16) - weight).max() < 1e-3


def test_channels_that_were_never_fed():
    assert np.isfinite(values(WEIGHT, 4, 16, np.zeros(256, np.float32))).all()
