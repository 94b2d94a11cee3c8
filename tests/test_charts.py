"""The report's charts: axes that are easily read, and a name for every mark."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from exporter.report import charts

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.9, 1.0871), (0, 538.1), (1, 1.01), (0, 3e-6), (0, 123456)])
def test_linear_ticks_are_nice(low: float, high: float) -> None:
    axis = charts.linear(low, high, 5)
    assert axis.low <= low
    assert axis.high >= high
    assert 3 <= len(axis.ticks) <= 8
    assert len({axis.label(tick) for tick in axis.ticks}) == len(axis.ticks)


@pytest.mark.parametrize(("low", "high"), [(1, 4), (0.98, 55), (1, 1e4), (1, 3e30)])
def test_logarithmic_ticks_are_few(low: float, high: float) -> None:
    axis = charts.logarithmic(low, high, 5)
    assert axis.low <= low
    assert axis.high >= high
    assert 2 <= len(axis.ticks) <= 7


def test_labels_do_not_collide() -> None:
    points = [charts.Point(f"target{i}:precision", i, 1, 0, "passed", "") for i in range(12)]
    spots = [(100.0 + 9 * i, 150.0 + 3 * i) for i in range(12)]
    boxes = [box for _, box in charts.labels(points, spots, (40, 30, 500, 300))]
    assert len(boxes) == 12
    for index, a in enumerate(boxes):
        assert not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in boxes[:index])


@pytest.mark.parametrize(("width", "height"), [(520, 340), (330, 300)])
@pytest.mark.parametrize("spread", [0, 0.2, 9])
def test_every_mark_of_a_crowd_has_its_own_label_and_the_best_its_name(width, height, spread):
    """Thirty marks on one spot, or nearly: names as far as there is room, then letters with a key."""
    points = [
        charts.Point(f"target{i:02}:precision", 100 + spread * i, 1 + 1e-5 * i, 0, "passed", "") for i in range(30)
    ]
    labels = charts.labels(points, [(150.0 + spread * i, 200.0 - i / 9) for i in range(30)], (60, 30, width - 14, 250))
    boxes = [box for _, box in labels]
    for index, a in enumerate(boxes):
        assert (a[0] >= 60, a[2] <= width - 14, a[1] >= 30, a[3] <= 250) == (True,) * 4
        assert not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in boxes[:index])
    assert labels[0][0] == points[0].label
    svg = charts.scatter(points, title="t", x_title="x", y_title="y", baseline=1, width=width, height=height)
    assert [name for name in (point.label for point in points) if name not in svg] == []


def test_an_axis_ends_where_the_data_end():
    for lowest, highest in ((0.9, 401.0), (300.0, 401.0), (400.0, 401.0), (7.0, 7.0)):
        axis = charts._horizontal([lowest, highest], 3)
        assert axis.low <= lowest
        assert highest < axis.high < 1.06 * highest
        assert axis.place(highest) > 0.75
        assert axis.low == 0 or axis.place(lowest) < 0.3 or highest - lowest < 0.01 * highest  # all but equal
        assert len(axis.ticks) >= 2
    points = [charts.Point("a", 1, 1.0, 0, "passed", ""), charts.Point("b", 1, 1.0411, 0.001, "passed", "")]
    assert charts._vertical(points, 1.0, 5).high < 1.045


def test_lines_of_a_plot_that_end_together_are_named_apart():
    series = {name: [(0.0, 1.0), (9.0, end)] for name, end in (("loss", 0.5), ("KL", 0.501), ("other", 0.499))}
    svg = charts.curves(series, title="t", x_title="x", y_title="y", width=330, height=300)
    heights = sorted(float(y) for y in re.findall(r'class="label" x="[^"]*" y="([^"]*)"', svg))
    assert len(heights) == 3
    assert all(b - a >= 13.9 for a, b in pairwise(heights))
