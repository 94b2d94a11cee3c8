"""Ranges of static inputs, against cases whose answer is known and against brute force over the samples themselves."""

import numpy as np
import pytest
import torch

from exporter.quantization.grid import rounded_input
from exporter.quantization.ranges import METHODS, entropy, min_max, percentile, rounded_up, squared_error
from exporter.quantization.statistics import collect
from exporter.scheme import Scheme

NUMBERS = np.random.default_rng(0)
SAMPLES = 200_000
GAUSSIAN = NUMBERS.normal(0, 1, SAMPLES)
SETS = {
    "uniform": NUMBERS.uniform(-2, 1, SAMPLES),
    "gaussian": GAUSSIAN,
    "laplace": NUMBERS.laplace(0, 1, SAMPLES),
    "gelu": np.maximum(GAUSSIAN * 3, -0.17),
    "negative": -NUMBERS.exponential(1, SAMPLES),
    "heavy tails": NUMBERS.standard_t(2, SAMPLES),
    "outliers on either side": np.r_[GAUSSIAN, [-300.0] * 20, [80.0] * 20],
    "one outlier": np.r_[GAUSSIAN, 1000.0],
    "almost only zeros": np.r_[np.zeros(SAMPLES), -2.0, 5.0],
    "a single value": np.full(10, 3.0),
}


class Fed(torch.nn.Module):
    """A layer that is fed the same samples, whatever it is called with."""

    def __init__(self, samples):
        super().__init__()
        self.layer, self.samples = torch.nn.Linear(1, 1), torch.tensor(samples, dtype=torch.float32)[:, None]

    def forward(self, input_ids):
        return self.layer(self.samples)


def histogram(samples):
    pieces = torch.zeros(1, 1, dtype=torch.int64)
    return collect(Fed(samples), pieces, lambda done, total: None)["layer"].histogram


@pytest.fixture(scope="module")
def histograms():
    return {name: histogram(samples) for name, samples in SETS.items()}


def true_error(samples, span):
    """The mean squared error of the samples themselves, as the grid rounds them."""
    values = torch.tensor(samples, dtype=torch.float32)
    scheme = Scheme(weight="int8", input="static", range=span)
    return float((rounded_input(values, scheme) - values).double().square().mean())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SETS)
def test_a_range_holds_zero_lies_within_what_was_seen_and_is_a_schemes(histograms, name, method, symmetric):
    low, high = METHODS[method](histograms[name], symmetric)
    widest = min_max(histograms[name], symmetric)
    assert widest[0] <= low <= 0 <= high <= widest[1]
    scheme = Scheme(weight="int8", input="static", range=(low, high))
    assert scheme.symmetric_input or not symmetric


def test_min_max_is_exact(histograms):
    for name, samples in SETS.items():
        seen = samples.astype(np.float32)
        assert min_max(histograms[name], False) == (min(seen.min(), 0), max(seen.max(), 0))
        assert min_max(histograms[name], True) == (-np.abs(seen).max(), np.abs(seen).max())


def test_a_percentile_that_only_zeros_are_within_is_min_max(histograms):
    for symmetric in (True, False):
        assert percentile(histograms["almost only zeros"], symmetric) == min_max(
            histograms["almost only zeros"], symmetric
        )


@pytest.mark.parametrize("share", [0.9, 0.99, 0.9999])
@pytest.mark.parametrize("name", [name for name in SETS if name != "almost only zeros"])
def test_percentiles_are_the_samples_own_up_to_a_bins_width(histograms, name, share):
    """The next sample's bin may be the one that is cut: so the bounds are the order statistics around it."""
    seen = SETS[name].astype(np.float32)
    [_, clip] = percentile(histograms[name], True, share)
    near = np.quantile(np.abs(seen), [max(share - 2 / len(seen), 0), min(share + 2 / len(seen), 1)])
    assert near[0] / (1 + 1 / 128) <= clip <= near[1] * (1 + 1 / 128)
    low, high = percentile(histograms[name], False, share)
    cut = (1 - share) / 2
    for found, side in ((-low, -seen), (high, seen)):
        near = np.quantile(side, [1 - cut - 2 / len(seen), min(1 - cut + 2 / len(seen), 1)]).clip(0)
        assert near[0] / (1 + 1 / 128) <= found <= near[1] * (1 + 1 / 128)


def test_percentile_and_entropy_clip_one_huge_outlier(histograms):
    for symmetric in (True, False):
        low, high = percentile(histograms["one outlier"], symmetric)
        assert -4 < low < -3.7
        assert 3.7 < high < 4
        low, high = entropy(histograms["one outlier"], symmetric)
        assert high <= 125


@pytest.mark.parametrize("name", SETS)
def test_no_symmetric_clip_has_less_error_than_the_one_that_is_found(histograms, name):
    low, high = squared_error(histograms[name], True)
    found = true_error(SETS[name], (low, high))
    reach = np.abs(SETS[name]).max()
    others = [true_error(SETS[name], (-clip, clip)) for clip in reach * np.linspace(1, 0, 60, endpoint=False)]
    assert found <= min(others) * 1.01


@pytest.mark.parametrize("name", SETS)
def test_no_asymmetric_range_has_less_error_than_the_one_that_is_found(histograms, name):
    found = true_error(SETS[name], squared_error(histograms[name], False))
    low, high = min_max(histograms[name], False)
    shares = np.linspace(1, 0, 12, endpoint=False)
    others = [true_error(SETS[name], (low * below, high * above)) for below in shares for above in shares]
    assert found <= min(others) * 1.02


def test_the_best_clip_of_a_gaussian_and_of_a_laplacian_are_the_literatures(histograms):
    """Banner et al. 2018, for 8 bits: 3.92 standard deviations of a Gaussian, 9.90 b of a Laplacian."""
    assert squared_error(histograms["gaussian"], True)[1] == pytest.approx(3.92, rel=0.03)
    assert squared_error(histograms["laplace"], True)[1] == pytest.approx(9.90, rel=0.08)


def test_nothing_of_a_uniform_distribution_is_clipped(histograms):
    for method in (squared_error, entropy):
        assert method(histograms["uniform"], False) == pytest.approx((-2, 1), rel=0.02)


def test_entropy_clips_a_thin_tail_and_keeps_the_distribution():
    """Codes are worth more where most values are: a tail of 1 value in 10,000 up to 40 is cut, the body is not."""
    samples = np.r_[GAUSSIAN, NUMBERS.uniform(4, 40, 20)]
    low, high = entropy(histogram(samples), True)
    assert 3.5 < high < 20
    assert low == -high


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_is_fed_zeros_gets_a_range(method):
    zeros = histogram(np.zeros(100))
    assert METHODS[method](zeros, True) == (-1, 1)
    assert METHODS[method](zeros, False) == (0, 1)


@pytest.mark.parametrize("per_octave", [1, 4, 16])
def test_ranges_rounded_up_hold_what_they_held_and_are_few(per_octave):
    reaches = 2 ** NUMBERS.uniform(-3, 3, 500)
    wider = [rounded_up((-reach, reach), per_octave) for reach in reaches]
    assert all(low == -high for low, high in wider)
    growth = np.array([high for _, high in wider]) / reaches
    assert growth.min() > 1 - 1e-5
    assert growth.max() < 2 ** (1 / per_octave) + 1e-5
    assert len(set(wider)) <= 6 * per_octave + 1
    assert [rounded_up(one, per_octave) for one in wider] == wider
    assert rounded_up((-1.5, 3.0), 1) == (-2.0, 4.0)
