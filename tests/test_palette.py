"""Weighted k-means in one dimension."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from exporter.quantization.palette import palettes, palettized
from exporter.scheme import Scheme

pytestmark = pytest.mark.quick
WEIGHT = np.random.default_rng(0).standard_normal((32, 256)).astype(np.float32)


def values(weight, bits, importance=None):
    scheme = Scheme(weight=f"palette{bits}")
    tables, indices = palettes(weight, scheme, importance)
    assert tables.shape == (len(weight) // 16, 1 << bits)
    assert (np.diff(tables) >= 0).all()
    found = np.take_along_axis(np.repeat(tables, 16, 0), indices.astype(np.int64), 1)
    assert np.array_equal(palettized(torch.from_numpy(weight), scheme, importance), found)
    return found


@pytest.mark.parametrize(("bits", "least"), [(4, 0.00950), (6, 0.00070)])  # of a normal distribution: Max, 1960
def test_it_is_near_the_best_that_there_is(bits, least):
    error = np.square(values(WEIGHT, bits) - WEIGHT).mean()
    assert error < 1.05 * least


def test_what_counts_more_is_nearer():
    importance, weight = np.ones(256, np.float32), WEIGHT.copy()
    importance[:8] = 1000
    weight[:, :8] *= 0.1
    plain, weighted = (np.square(values(weight, 4, it) - weight).mean(0)[:8].mean() for it in (None, importance))
    assert weighted < 0.5 * plain


@pytest.mark.parametrize("weight", [np.zeros((16, 8), np.float32), np.ones((16, 8), np.float32)])
def test_few_values_are_kept(weight):
    assert np.array_equal(values(weight, 4), weight)


@pytest.mark.parametrize("bits", [4, 6])
def test_a_palette_s_own_values_are_kept(bits):
    own = values(WEIGHT, bits, np.arange(256, dtype=np.float32))
    assert np.array_equal(values(own, bits), own)


def test_a_palette_is_of_weights_alone():
    for wrong in ({"group": 32}, {"symmetric": False}, {"input": "dynamic"}):
        with pytest.raises(ValueError, match="palette4 has no group, no zero points and a float input"):
            Scheme(weight="palette4", **wrong)


def test_channels_that_were_never_fed():
    assert np.isfinite(values(WEIGHT, 4, np.zeros(256, np.float32))).all()
