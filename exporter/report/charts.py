"""Scatter plots and curves as plain SVG: no script, no plotting library, colours left to the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import product
from string import ascii_lowercase, ascii_uppercase

_FONT = 12  # px; the page draws a plot at about its own size, so that this is what the reader sees
_CHARACTER = 6.9  # px: a little over the mean width of a character at that size, for no font can be measured here
_RADIUS = 5
_REACH = 8  # px from a mark's middle that no label may enter
_TOP, _RIGHT, _BOTTOM = 34, 14, 46
_LINE = 18  # px, of the key below a plot
_ROOM = 0.05  # of an axis, beyond the outermost marks
_FROM_ZERO = 0.5  # a smallest x above this share of the largest starts the axis, not 0
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
        step = math.log10(self.ticks[1] - self.ticks[0]) + 1e-9
        decimals, digits = max(0, -math.floor(step)), max(3, math.ceil(math.log10(abs(tick)) - step) + 1)
        return f"{tick:,.{decimals}f}" if decimals < 5 and abs(tick) < 1e7 else f"{tick:.{digits}g}"


def linear(low: float, high: float, count: int) -> Axis:
    """An axis over exactly [low, high] with up to `count` + 1 ticks, at multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power: float = 10.0 ** math.floor(math.log10(rough))
    steps = [factor * power for factor in (0.2, 0.5, 1, 2, 5, 10, 20)]
    spans = [(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)) for step in steps]
    # The finest that is not too fine, of which there are two ticks at least.
    at = next(index for index, (first, last) in enumerate(spans) if last - first <= count)
    at -= spans[at][0] == spans[at][1]
    step, (first, last) = steps[at], spans[at]
    # round: 3 × 0.1 is 0.30000000000000004, and a tick is compared with the baseline
    decimals = max(0, 3 - math.floor(math.log10(step)))
    return Axis(tuple(round(step * index, decimals) for index in range(first, last + 1)), low, high)


def logarithmic(low: float, high: float, count: int) -> Axis:
    """An axis over [low, high], low > 0, with ticks at 1, 2, 5 times powers of ten, or fewer where that is too many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside = [tick for power, factor in product(powers, (1, 2, 5)) if low <= (tick := factor * 10.0**power) <= high]
    if len(inside) > count + 2:
        inside = [10.0**power for power in powers if low <= 10.0**power <= high]
    return Axis(tuple(inside[:: math.ceil(len(inside) / (count + 2))]), low, high, log=True)


def _vertical(points: Sequence[Point], baseline: float, count: int) -> Axis:
    """From the baseline, or what lies below it, to what is highest, with a little room around."""
    high = max([baseline, *(point.y + point.spread for point in points)])
    if 0 < _LOGARITHMIC * baseline < high:
        low = min([baseline, *(point.y for point in points if point.y > 0)])
        room = (high / low) ** _ROOM
        return logarithmic(low / room, high * room, count)
    low = min([baseline, *(point.y - point.spread for point in points)])
    least = 0.01 if baseline else 1e-4  # what is equal for all purposes is not magnified into a difference
    high = max(high, low + least)
    return linear(low - _ROOM * (high - low), high + _ROOM * (high - low), count)


def _horizontal(values: Sequence[float], count: int) -> Axis:
    """From 0, or from close to the smallest where all are so large that they would crowd at the right end."""
    low, high = min(values), max(values) or 1.0
    low = 0.0 if low < _FROM_ZERO * high else max(0.0, low - max(high - low, _ROOM * high) / 4)
    return linear(low, high + _ROOM * max(high - low, _ROOM * high), count)


def _overlap(box: Box, others: Iterable[Box]) -> bool:
    return any(box[0] < o[2] and box[2] > o[0] and box[1] < o[3] and box[3] > o[1] for o in others)


def labels(points: Sequence[Point], spots: Sequence[tuple[float, float]], plot: Box) -> list[tuple[str, Box]]:
    """(text, box) of each mark's label: its name near it, or a letter where there is no room for the name.

    No label touches another or a mark. The letters, in their order, need a key that says whose they are. The best are
    placed first, those of the lowest y: what a reader looks for has its name.
    """
    taken: list[Box] = [(x - _REACH, y - _REACH, x + _REACH, y + _REACH) for x, y in spots]
    found: dict[int, tuple[str, Box]] = {}
    order = sorted(range(len(points)), key=lambda index: (points[index].kind == "failed", points[index].y))
    for index in order:
        if (box := _near(points[index].label, spots[index], plot, taken)) is not None:
            found[index] = points[index].label, box
            taken.append(box)
    letters = iter(ascii_lowercase + ascii_uppercase)
    for index in range(len(points)):
        if index not in found:
            letter = next(letters, "·")
            box = _near(letter, spots[index], plot, taken) or _anywhere(letter, spots[index], plot, taken)
            found[index] = letter, box
            taken.append(box)
    return [found[index] for index in range(len(points))]


def _near(text: str, spot: tuple[float, float], plot: Box, taken: Sequence[Box]) -> Box | None:
    """The first free place around a mark."""
    (x, y), wide, high = spot, len(text) * _CHARACTER, _FONT + 2
    for distance, (across, down) in product(_DISTANCES, _DIRECTIONS):
        left = x + across * distance * (0.75 if down else 1) - wide * (0.5 - 0.5 * across)
        top = y + down * (distance + 2) - high / 2
        if _free(box := (left, top, left + wide, top + high), plot, taken):
            return box
    return None


def _anywhere(text: str, spot: tuple[float, float], plot: Box, taken: Sequence[Box]) -> Box:
    """The nearest free place in all the plot; beside the mark where there is none at all."""
    (x, y), wide, high = spot, len(text) * _CHARACTER + 2, _FONT + 2
    columns, rows = int((plot[2] - plot[0]) // wide), int((plot[3] - plot[1]) // high)
    boxes = [
        (left, top, left + wide, top + high)
        for left in (plot[0] + wide * column for column in range(columns))
        for top in (plot[1] + high * row for row in range(rows))
    ]
    free = [box for box in boxes if _free(box, plot, taken)]
    beside = (x + _REACH, y - high / 2, x + _REACH + wide, y + high / 2)
    return min(free, key=lambda box: math.hypot((box[0] + box[2]) / 2 - x, (box[1] + box[3]) / 2 - y), default=beside)


def _free(box: Box, plot: Box, taken: Iterable[Box]) -> bool:
    inside = box[0] >= plot[0] and box[2] <= plot[2] and box[1] >= plot[1] and box[3] <= plot[3]
    return inside and not _overlap(box, taken)


def _mark(point: Point, x: float, y: float) -> str:
    """A circle, a hollow diamond for what failed and a frame for the reference: told apart without colour too."""
    r = _RADIUS
    if point.kind == "reference":  # room for a circle within: a float export often lies on the same spot
        return f'<rect class="mark" x="{x - 7:.1f}" y="{y - 7:.1f}" width="14" height="14"/>'
    if point.kind == "failed":
        return f'<path class="mark" d="M{x:.1f} {y - r - 1:.1f}l{r + 1} {r + 1}l{-r - 1} {r + 1}l{-r - 1} {-r - 1}z"/>'
    return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'


def _label(name: str, box: Box, x: float, y: float) -> str:
    """A label's text, with a thin line to its mark where it had to move away from it."""
    near_x, near_y = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
    length = math.hypot(near_x - x, near_y - y)
    from_x, from_y = x + (near_x - x) * _REACH / length, y + (near_y - y) * _REACH / length
    leader = f'<line class="leader" x1="{from_x:.1f}" y1="{from_y:.1f}" x2="{near_x:.1f}" y2="{near_y:.1f}"/>'
    middle = (box[0] + box[2]) / 2
    # Anchored on the mark's side, for the box is a guess that is mostly too wide.
    anchor, at = ("start", box[0]) if box[0] > x else ("end", box[2]) if box[2] < x else ("middle", middle)
    text = f'<text class="label" x="{at:.1f}" y="{box[3] - 4:.1f}" text-anchor="{anchor}">{escape(name)}</text>'
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
    x_axis = _horizontal([point.x for point in points], (width - 60) // 75)
    left = 10 + _CHARACTER * max(len(y_axis.label(tick)) for tick in y_axis.ticks)
    plot: Box = (left, _TOP, width - _RIGHT, height - _BOTTOM)
    spots = [
        (left + x_axis.place(p.x) * (plot[2] - left), plot[3] - y_axis.place(p.y) * (plot[3] - _TOP)) for p in points
    ]
    placed = labels(points, spots, plot)
    key = [(name, point.label) for point, (name, _) in zip(points, placed, strict=True) if name != point.label]
    spoken = f"{title}. " + "; ".join(point.tip for point in points)
    tall = height + _LINE * len(key)
    out = [
        f'<svg role="img" aria-label="{escape(spoken)}" viewBox="0 0 {width} {tall}" font-size="{_FONT}">',
        f'<text class="axis" x="0" y="14">{escape(y_title)}</text>',
        f'<text class="axis" x="{plot[2]}" y="{height - 6}" text-anchor="end">{escape(x_title)}</text>',
        *_grid(x_axis, y_axis, plot, width, baseline),
    ]
    for point, (x, y), (name, box) in zip(points, spots, placed, strict=True):
        out.append(f'<g class="{escape(point.kind)}"><title>{escape(point.tip)}</title>')
        if point.spread:
            high, low = (plot[3] - y_axis.place(point.y + s) * (plot[3] - _TOP) for s in (point.spread, -point.spread))
            out.append(f'<path class="bar" d="M{x:.1f} {low:.1f}V{high:.1f}m-3 0h6M{x - 3:.1f} {low:.1f}h6"/>')
        out.append(_label(name, box, x, y) + _mark(point, x, y) + "</g>")
    for line, (letter, name) in enumerate(key):
        y = height + _LINE * line + _FONT
        out.append(f'<text class="label" x="{left:.1f}" y="{y}">{letter}  {escape(name)}</text>')
    return "".join([*out, "</svg>"])


def _apart(heights: Sequence[float]) -> list[float]:
    """Heights of lines of text, from below to above, each moved up to be a line away from the one below it."""
    moved, free = list(heights), math.inf
    for index in sorted(range(len(moved)), key=lambda index: -moved[index]):
        moved[index] = free = min(moved[index], free - _FONT - 2)
    return moved


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
    drawn = [
        [(left + x_axis.place(x) * (plot[2] - left), plot[3] - y_axis.place(y) * (plot[3] - _TOP)) for x, y in line]
        for line in series.values()
    ]
    heights = _apart([spots[-1][1] - 8 for spots in drawn])
    for index, (name, spots, height_of) in enumerate(zip(series, drawn, heights, strict=True)):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        last_x = spots[-1][0]
        out.append(f'<g><title>{escape(name)}</title><polyline class="curve curve{index}" points="{path}"/>')
        out.append(
            f'<text class="label" x="{last_x:.1f}" y="{height_of:.1f}" text-anchor="end">{escape(name)}</text></g>'
        )
    return "".join([*out, "</svg>"])
