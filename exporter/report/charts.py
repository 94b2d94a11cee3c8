"""Scatter plots and curves as plain SVG: no script, no plotting library, colours left to the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import product

_FONT = 12  # px; the page draws a plot at about its own size, so that this is what the reader sees
_CHARACTER = 6.9  # px: a little over the mean width of a character at that size, for no font can be measured here
_RADIUS = 5
_REACH = 8  # px from a mark's middle that no label may enter
_TOP, _RIGHT, _BOTTOM = 34, 14, 46
_LOGARITHMIC = 3.0  # a largest y of so many baselines would press all the others flat on a linear axis
_DISTANCES = (10, 20, 34, 50, 70)  # px from a mark to its label: the first that is free is taken
_DIRECTIONS = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1))

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Point:
    """A mark: where it is, half its error bar, its kind (a CSS class: passed, failed or reference) and its tooltip."""

    label: str
    x: float
    y: float
    spread: float
    kind: str
    tip: str


@dataclass(frozen=True)
class Axis:
    """A scale from values to 0…1, with its ticks; values beyond its ends are drawn at its ends."""

    ticks: tuple[float, ...]
    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def label(self, tick: float) -> str:
        if self.log or tick == 0:
            return f"{tick:g}"
        decimals = max(0, -math.floor(math.log10(self.ticks[1] - self.ticks[0]) + 1e-9))
        return f"{tick:,.{decimals}f}" if decimals < 5 and abs(tick) < 1e7 else f"{tick:.3g}"


def linear(low: float, high: float, count: int) -> Axis:
    """An axis over [low, high] with about `count` ticks, at multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power: float = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    # round: 3 × 0.1 is 0.30000000000000004, and a tick is compared with the baseline
    ticks = tuple(round(step * index, 12) for index in range(first, last + 1))
    return Axis(ticks, ticks[0], ticks[-1])


def logarithmic(low: float, high: float, count: int) -> Axis:
    """An axis over [low, high], low > 0, with ticks at 1, 2, 5 times powers of ten, or fewer where that is too many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**power for power, factor in product(powers, (1, 2, 5))]
    first = max(index for index, tick in enumerate(ticks) if tick <= low * (1 + 1e-9))
    last = min(index for index, tick in enumerate(ticks) if tick >= high * (1 - 1e-9))
    low, high, ticks = ticks[first], ticks[last], ticks[first : last + 1]
    if len(ticks) > count + 2:
        ticks = [10.0**power for power in powers if low <= 10.0**power <= high]
    return Axis(tuple(ticks[:: math.ceil(len(ticks) / (count + 2))]), low, high, log=True)


def _vertical(points: Sequence[Point], baseline: float, count: int) -> Axis:
    high = max([baseline, *(point.y + point.spread for point in points)])
    if 0 < _LOGARITHMIC * baseline < high:
        return logarithmic(min([baseline, *(point.y for point in points if point.y > 0)]), high, count)
    low = min([baseline, *(point.y - point.spread for point in points)])
    least = 0.01 if baseline else 1e-4  # what is equal for all purposes is not magnified into a difference
    return linear(low, max(high, low + least), count)


def _overlap(box: Box, others: Iterable[Box]) -> bool:
    return any(box[0] < o[2] and box[2] > o[0] and box[1] < o[3] and box[3] > o[1] for o in others)


def labels(points: Sequence[Point], spots: Sequence[tuple[float, float]], plot: Box) -> list[Box | None]:
    """A box near each mark that no mark and no other label touches; None where there is no room."""
    taken: list[Box] = [(x - _REACH, y - _REACH, x + _REACH, y + _REACH) for x, y in spots]
    boxes: list[Box | None] = []
    for point, (x, y) in zip(points, spots, strict=True):
        wide, high = len(point.label) * _CHARACTER, _FONT + 2
        boxes.append(None)
        for distance, (across, down) in product(_DISTANCES, _DIRECTIONS):
            left = x + across * distance * (0.75 if down else 1) - wide * (0.5 - 0.5 * across)
            top = y + down * (distance + 2) - high / 2
            box = (left, top, left + wide, top + high)
            inside = box[0] >= plot[0] and box[2] <= plot[2] and box[1] >= plot[1] and box[3] <= plot[3]
            if inside and not _overlap(box, taken):
                boxes[-1] = box
                taken.append(box)
                break
    return boxes


def _mark(point: Point, x: float, y: float) -> str:
    """A circle, a hollow diamond for what failed and a frame for the reference: told apart without colour too."""
    r = _RADIUS
    if point.kind == "reference":  # room for a circle within: a float export often lies on the same spot
        return f'<rect class="mark" x="{x - 7:.1f}" y="{y - 7:.1f}" width="14" height="14"/>'
    if point.kind == "failed":
        return f'<path class="mark" d="M{x:.1f} {y - r - 1:.1f}l{r + 1} {r + 1}l{-r - 1} {r + 1}l{-r - 1} {-r - 1}z"/>'
    return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'


def _label(point: Point, box: Box, x: float, y: float) -> str:
    """The label's text, with a thin line to its mark where it had to move away from it."""
    near_x, near_y = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
    length = math.hypot(near_x - x, near_y - y)
    from_x, from_y = x + (near_x - x) * _REACH / length, y + (near_y - y) * _REACH / length
    leader = f'<line class="leader" x1="{from_x:.1f}" y1="{from_y:.1f}" x2="{near_x:.1f}" y2="{near_y:.1f}"/>'
    middle = (box[0] + box[2]) / 2
    # Anchored on the mark's side, for the box is a guess that is mostly too wide.
    anchor, at = ("start", box[0]) if box[0] > x else ("end", box[2]) if box[2] < x else ("middle", middle)
    text = f'<text class="label" x="{at:.1f}" y="{box[3] - 4:.1f}" text-anchor="{anchor}">{escape(point.label)}</text>'
    return (leader if length > 2 * _REACH else "") + text


def _grid(x_axis: Axis, y_axis: Axis, plot: Box, width: int, baseline: float) -> list[str]:
    left, _, right, bottom = plot
    out = []
    for tick in y_axis.ticks:
        y = bottom - y_axis.place(tick) * (bottom - plot[1])
        out.append(f'<line class="grid" x1="{left:.1f}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        text = y_axis.label(tick)
        out.append(f'<text class="tick" x="{left - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for tick in x_axis.ticks:
        x, text = left + x_axis.place(tick) * (right - left), x_axis.label(tick)
        out.append(f'<line class="grid" x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 4}"/>')
        middle = min(x, width - len(text) * _CHARACTER / 2)  # the last one would stick out of the picture
        out.append(f'<text class="tick" x="{middle:.1f}" y="{bottom + 18}" text-anchor="middle">{text}</text>')
    y = bottom - y_axis.place(baseline) * (bottom - plot[1])
    return [*out, f'<line class="baseline" x1="{left:.1f}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>']


def scatter(
    points: Sequence[Point], *, title: str, x_title: str, y_title: str, baseline: float, width: int, height: int
) -> str:
    """An SVG element of `width` by `height` px. x starts at 0; `baseline` is the y of a perfect copy of the reference.

    Needs a point. Every text is escaped here.
    """
    y_axis = _vertical(points, baseline, (height - _TOP - _BOTTOM) // 44)
    x_axis = linear(0, max(point.x for point in points) * 1.04 or 1, (width - 60) // 75)
    left = 10 + _CHARACTER * max(len(y_axis.label(tick)) for tick in y_axis.ticks)
    plot: Box = (left, _TOP, width - _RIGHT, height - _BOTTOM)
    spots = [
        (left + x_axis.place(p.x) * (plot[2] - left), plot[3] - y_axis.place(p.y) * (plot[3] - _TOP)) for p in points
    ]
    spoken = f"{title}. " + "; ".join(point.tip for point in points)
    out = [
        f'<svg role="img" aria-label="{escape(spoken)}" viewBox="0 0 {width} {height}" font-size="{_FONT}">',
        f'<text class="axis" x="0" y="14">{escape(y_title)}</text>',
        f'<text class="axis" x="{plot[2]}" y="{height - 6}" text-anchor="end">{escape(x_title)}</text>',
        *_grid(x_axis, y_axis, plot, width, baseline),
    ]
    for point, (x, y), box in zip(points, spots, labels(points, spots, plot), strict=True):
        out.append(f'<g class="{escape(point.kind)}"><title>{escape(point.tip)}</title>')
        if point.spread:
            high, low = (plot[3] - y_axis.place(point.y + s) * (plot[3] - _TOP) for s in (point.spread, -point.spread))
            out.append(f'<path class="bar" d="M{x:.1f} {low:.1f}V{high:.1f}m-3 0h6M{x - 3:.1f} {low:.1f}h6"/>')
        out.append((_label(point, box, x, y) if box else "") + _mark(point, x, y) + "</g>")
    return "".join([*out, "</svg>"])


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x_title: str,
    y_title: str,
    width: int,
    height: int,
) -> str:
    """An SVG element of `width` by `height` px: a line for each series of points (x, y), named at its last point.

    Needs a point in each series; x and y start at 0. The lines are told apart by CSS classes curve0, curve1, …, and by
    their names. Every text is escaped here.
    """
    points = [point for line in series.values() for point in line]
    y_axis = linear(0, max(y for _, y in points) or 1, (height - _TOP - _BOTTOM) // 44)
    x_axis = linear(0, max(x for x, _ in points) or 1, (width - 60) // 75)
    left = 10 + _CHARACTER * max(len(y_axis.label(tick)) for tick in y_axis.ticks)
    plot: Box = (left, _TOP, width - _RIGHT, height - _BOTTOM)
    ends = (f"{name} from {line[0][1]:.4g} to {line[-1][1]:.4g}" for name, line in series.items())
    spoken = f"{title}. {'; '.join(ends)}"
    out = [
        f'<svg role="img" aria-label="{escape(spoken)}" viewBox="0 0 {width} {height}" font-size="{_FONT}">',
        f'<text class="axis" x="0" y="14">{escape(y_title)}</text>',
        f'<text class="axis" x="{plot[2]}" y="{height - 6}" text-anchor="end">{escape(x_title)}</text>',
        *_grid(x_axis, y_axis, plot, width, 0.0),
    ]
    for index, (name, line) in enumerate(series.items()):
        spots = [
            (left + x_axis.place(x) * (plot[2] - left), plot[3] - y_axis.place(y) * (plot[3] - _TOP)) for x, y in line
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        last_x, last_y = spots[-1]
        out.append(f'<g><title>{escape(name)}</title><polyline class="curve curve{index}" points="{path}"/>')
        out.append(
            f'<text class="label" x="{last_x:.1f}" y="{last_y - 8:.1f}" text-anchor="end">{escape(name)}</text></g>'
        )
    return "".join([*out, "</svg>"])
