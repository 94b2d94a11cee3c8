"""The graphs of an artifact's folder: one in it, or an encoder's and a decoder's in folders of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from exporter.form import FORMS
from exporter.targets.onnx_graph import held, zeros
from exporter.targets.tensorrt.quantize import Products
from exporter.types import Weight

MODEL, DATA = "model.onnx", "model.onnx_data"
ENCODER, DECODER = "encoder", "decoder"


def parts_of(task: str) -> tuple[str, ...]:
    """The folders of a task's graphs inside an artifact's; "" is that one itself."""
    return (ENCODER, DECODER) if FORMS[task].encodes else ("",)


def parts_in(folder: Path) -> dict[str, Path]:
    """The graphs of an artifact that is written, by their folders' names."""
    names = ("",) if (folder / MODEL).is_file() else (ENCODER, DECODER)
    return {name: folder / name / MODEL for name in names}


def within(part: str, name: str) -> str:
    """What a file, a node or a weight of one graph is called in the artifact."""
    return f"{part}/{name.removeprefix('/')}" if part else name


def share(products: Iterable[Products | None]) -> float | None:
    """Of all graphs' multiplications, those in int8; None where nothing is quantized."""
    told = [one for one in products if one is not None]
    return sum(one.int8 for one in told) / max(sum(one.all for one in told), 1) if told else None


def together(steps: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The seconds of each step, of all graphs."""
    total: dict[str, float] = {}
    for told in steps:
        for step, seconds in told.items():
            total[step] = total.get(step, 0.0) + seconds
    return total


def as_one(built: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What build() says of each engine, as of one; what is not known of each is not known."""
    layers, sparse = [one["layers"] for one in built], [one["sparse_layers"] for one in built]
    return {
        **built[0],
        "engine_bytes": sum(one["engine_bytes"] for one in built),
        "layers": None if None in layers else _layers(layers),
        "sparse_layers": None if None in sparse else sum(sparse),
        "seconds": together(one["seconds"] for one in built),
    }


def _layers(told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    counted = {by: together(one[by] for one in told) for by in ("by_type", "by_precision")}
    whole = {by: {name: int(count) for name, count in counts.items()} for by, counts in counted.items()}
    return {"source": told[0]["source"], "count": sum(one["count"] for one in told), **whole}


def weights_in(folder: Path) -> list[Weight]:
    """The weight matrices of all graphs; what two hold, such as an embedding, is in both."""
    of_each = ((part, held.weights_of(graph)) for part, graph in parts_in(folder).items())
    return [replace(one, name=within(part, one.name)) for part, weights in of_each for one in weights]


def zero_counts_in(folder: Path) -> dict[str, int]:
    """The zeros of all graphs, by the same names."""
    of_each = ((part, zeros.zero_counts(graph)) for part, graph in parts_in(folder).items())
    return {within(part, weight): count for part, counts in of_each for weight, count in counts.items()}


def two_of_four_in(graphs: Iterable[Path]) -> tuple[int, int]:
    """In how many layers' matrices 2:4 holds, and of how many, of all graphs."""
    found = [zeros.two_of_four(graph) for graph in graphs]
    return sum(sparse for sparse, _ in found), sum(layers for _, layers in found)
