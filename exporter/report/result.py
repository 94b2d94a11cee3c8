"""A row of the report while it is made: figures in groups, which a task or a target may add to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from exporter.report.document import GROUPS, Quality
from exporter.report.document import Figure as Figure
from exporter.report.document import Gate as Gate
from exporter.types import Status, Variant


@dataclass
class Result:
    """One row of the report. What was not measured is None, and `reason` says why.

    A group has the keys that report/document.py names from the start, and whatever else was measured beside them.
    """

    target: str
    precision: str
    status: Status = "ok"
    reason: str | None = None
    path: str | None = None
    artifact: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Figure] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    speed: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    build: dict[str, Any] = field(default_factory=dict)
    gates: list[Gate] = field(default_factory=list)
    samples: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, group in GROUPS.items():
            nothing = Figure() if group is Quality else None
            setattr(self, name, dict.fromkeys(group.model_fields, nothing) | getattr(self, name))

    @property
    def variant(self) -> Variant:
        return Variant(self.target, self.precision)

    @property
    def passed(self) -> bool:
        return self.status != "failed" and all(gate.passed for gate in self.gates)

    def figure(self, name: str) -> Figure:
        """What a gate can be named after: a figure of the quality, or another group's number, which has no error."""
        if name in self.quality:
            return self.quality[name]
        numbers = self.artifact | self.generation | self.speed | self.memory | self.build
        # What a name's gate is about is said beside its figures.
        detail = self.artifact["wider"] if name in ("named_share", "bits_per_weight") else None
        return Figure(numbers.get(name), detail=detail)

    def add(self, groups: Mapping[str, Mapping[str, Any]]) -> None:
        """Figures that a worker measured, by their groups; as JSON, for they come through a pipe."""
        for name, values in groups.items():
            told = {key: Figure(**value) for key, value in values.items()} if name == "quality" else values
            getattr(self, name).update(told)

    @property
    def odd(self) -> list[str]:
        """What came out as NaN or infinite, which JSON does not have: "quality.ppl.value is inf"."""
        return [f"{key} is {value}" for key, value in _numbers("", asdict(self)) if not math.isfinite(value)]

    def to_json(self) -> dict[str, Any]:
        """What is no number is null, as what was not measured; its row has failed, and says so."""
        whole: dict[str, Any] = _without_odd(asdict(self))
        return whole


def _numbers(key: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield key, value
    elif isinstance(value, Mapping | list | tuple):
        for name, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _numbers(f"{key}.{name}" if key else str(name), item)


def _without_odd(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_odd(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_odd(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
