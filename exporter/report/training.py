"""The records of what was trained, a distillation or for quantization, in words and as a plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from exporter.report import charts

_POINTS = 50  # of a line: neighbouring steps are averaged, for they differ by their texts more than by what was learned


def trained(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each training of a report's model in its order: name, title, lines, and its plot as wide and narrow SVG."""
    found = []
    for name, title, lines, plot in (
        ("distill", "Distillation", distill_lines, _distill_plot),
        ("qat", "Quantization-aware training", training_lines, _training_plot),
    ):
        if (record := model[name]) is not None:
            found.append({"name": name, "title": title, "lines": list(lines(record)), **plot(record, title)})
    return found


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


def _training_plot(record: Mapping[str, Any], title: str) -> dict[str, str]:
    series = {"KL to the float model": _line(record, 2)}
    if record["kd"] < 1:
        series["loss"] = _line(record, 1)
    return _drawn(series, title, "Loss, nats per token")


def distill_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """Who taught whom what, how far it came, and what it took; the held-out figures are in the history."""
    own = record["alpha"] if record["hard"] else 0.0
    parts = [f"{1 - own:g} temperature^2 KL at temperature {record['temperature']:g}"] * (own < 1)
    parts += [f"{own:g} of the task's loss"] * bool(own)
    parts += [f"{record['features']:g} of the hidden states' error"] * bool(record["features"])
    yield f"the loss: {' + '.join(parts)}; teacher: {record['teacher_name']}; seed {record['seed']}"
    if record["steps_done"] < record["steps"]:
        yield (
            f"stopped after {record['steps_done']} of {record['steps']} steps: {record['patience']} looks at the "
            "held-out examples in a row had bettered nothing"
        )
    batch = f"{record['batch']} x {record['accumulate']}" if record["accumulate"] > 1 else record["batch"]
    yield (
        f"each step took {batch} of {record['examples']:,} examples ({record['tokens']:,} tokens) of {record['text']}, "
        f"{record['examples_held_out']} more were held out; {record['seconds']:,.0f} s"
    )
    if record["zeros_held"]:
        yield f"{record['zeros_held']:,} weights that were 0 stayed 0"


def _distill_plot(record: Mapping[str, Any], title: str) -> dict[str, str]:
    held_out: list[tuple[float, float]] = [(step, value) for step, value in record["held_out"]]
    return _drawn({"loss": _line(record, 1), f"{record['measure']}, held out": held_out}, title, "Loss")


def _drawn(series: Mapping[str, Sequence[tuple[float, float]]], title: str, y_title: str) -> dict[str, str]:
    """The SVG for a wide page and for a phone."""
    return {
        css: charts.curves(series, title=title, x_title="Step", y_title=y_title, width=width, height=height)
        for css, width, height in (("wide", 520, 280), ("narrow", 330, 260))
    }


def _line(record: Mapping[str, Any], column: int) -> list[tuple[float, float]]:
    """A column of the curve [step, loss, …] over the steps, as the means of at most _POINTS neighbourhoods."""
    curve = record["curve"]
    size = -(-len(curve) // _POINTS)
    parts = [curve[begin : begin + size] for begin in range(0, len(curve), size)]
    return [(fmean(one[0] for one in part), fmean(one[column] for one in part)) for part in parts]
