"""The record of a quantization-aware training, in words and as a plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from exporter.report import charts

_POINTS = 50  # of a line: neighbouring steps are averaged, for they differ by their texts more than by what was learned


def training_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """What was trained, how far it came, and what it took."""
    lora = "all weights" if record["lora"] is None else f"LoRA factors of rank {record['lora']}"
    yield f"{record['layers']} linear layers as {record['scheme']}; trained: {lora}, seed {record['seed']}"
    kl = _line(record, 2)
    yield f"KL to the float model on the training text: {kl[0][1]:.3g} at the start, {kl[-1][1]:.3g} at the end"
    if record["shared"]:
        yield f"trained in float, for another module has the same weight: {', '.join(record['shared'])}"
    batch = f"{record['batch']} windows of {record['window']} tokens"
    yield f"{record['steps']} steps of {batch}, from a text of {record['tokens']:,}, took {record['seconds']:,.0f} s"


def training_plot(record: Mapping[str, Any]) -> dict[str, str]:
    """The loss over the steps: title, and the SVG for a wide page and for a phone."""
    series = {"KL to the float model": _line(record, 2)}
    if record["kd"] < 1:
        series["loss"] = _line(record, 1)
    title = "Quantization-aware training"
    drawn = {
        css: charts.curves(
            series, title=title, x_title="Step", y_title="Loss, nats per token", width=width, height=height
        )
        for css, width, height in (("wide", 520, 280), ("narrow", 330, 260))
    }
    return {"title": title, **drawn}


def _line(record: Mapping[str, Any], column: int) -> list[tuple[float, float]]:
    """A column of the curve [step, loss, kl, ce] over the steps, as the means of at most _POINTS neighbourhoods."""
    curve = record["curve"]
    size = -(-len(curve) // _POINTS)
    parts = [curve[begin : begin + size] for begin in range(0, len(curve), size)]
    return [(fmean(one[0] for one in part), fmean(one[column] for one in part)) for part in parts]
