"""Optimization profiles: the sizes that an engine takes, and is tuned for.

A job says batch=1:1:8,length=1:128:512, each min:opt:max; of an encoder-decoder source=1:128:512 too. A graph's inputs
have named axes; each gets its range from these. The ranges hold together at min, at opt and at max (past + new =
total), which TensorRT checks: so `past` begins at 0 and is 0 at opt, which tunes for the prompt; and what is kept of a
source is nothing at min and at opt, and at max all of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from exporter.errors import BuildError, JobError, unknown
from exporter.form import FORMS
from exporter.runner import Floats, Ids, Sample
from exporter.targets.onnx_graph.traced import BATCH, NEW, PAST, READ, SOURCE, TOTAL

_PART = re.compile(r"^(\w+)=(\d+):(\d+):(\d+)$")
Dimensions = Sequence[str | int]
Shapes = tuple[list[int], list[int], list[int]]  # of one input at min, opt and max


class Range(NamedTuple):
    """The least, the tuned-for and the greatest size of an axis."""

    min: int
    opt: int
    max: int

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


@dataclass(frozen=True)
class Profile:
    """How many texts or pictures at once, and how many tokens a text has: with a KV cache prompt and answer together.

    A picture has one size, of which `length` says nothing. Of an encoder-decoder `length` is the target's, and `source`
    what its encoder reads; None where none is said.
    """

    batch: Range
    length: Range
    source: Range | None = None

    @classmethod
    def parse(cls, text: str) -> Profile:
        """What the option profile says. Raises ValueError."""
        names = tuple(cls.__dataclass_fields__)
        ranges: dict[str, Range] = {}
        for part in text.split(","):
            found = _PART.match(part.strip())
            if not found:
                raise ValueError(f"{part.strip()!r}: give NAME=MIN:OPT:MAX, such as length=1:128:512")
            name, sizes = found[1], Range(*map(int, found.groups()[1:]))
            if name not in names:
                raise ValueError(unknown("size", name, names))
            if name in ranges:
                raise ValueError(f"it names {name} twice")
            if not 1 <= sizes.min <= sizes.opt <= sizes.max:
                raise ValueError(f"{name}={sizes}: the sizes must be at least 1 and in order, min ≤ opt ≤ max")
            ranges[name] = sizes
        for name in ("batch", "length"):
            if name not in ranges:
                raise ValueError(f"it names no {name}; give all, as in batch=1:1:8,length=1:128:512")
        return cls(**ranges)

    def of(self, task: str) -> Profile:
        """The profile with a source's sizes where a task has sources: those of `length` where none are said."""
        return replace(self, source=self.source or self.length) if FORMS[task].encodes else self

    def of_source(self) -> Profile:
        """What it says of an encoder, which reads sources alone."""
        return replace(self, length=self.source or self.length)

    def check(self, task: str, window: int, flag: str) -> None:
        """Whether what the artifact will be measured on is inside. Raises JobError."""
        form = FORMS[task]
        if self.source is not None and not form.encodes:
            raise JobError(f"{flag} source={self.source}: a model for {task} reads no source; leave it out")
        if form.cached and (self.batch.min, self.length.min) != (1, 1):
            raise JobError(f"{flag}: batch and length must begin at 1: decoding is one token of one text at a time")
        if self.source is not None and self.source.min != 1:
            raise JobError(f"{flag}: source must begin at 1: it is measured on short sources too")
        read = {"length": self.length} | ({"source": self.source} if self.source is not None else {})
        for name, sizes in read.items():
            if form.inputs == "text" and window > sizes.max:
                raise JobError(
                    f"{flag} {name}={sizes}: it is measured on texts of {window} tokens; raise the profile's "
                    f"greatest {name}, or lower --window {window}"
                )

    def record(self, inputs: Mapping[str, Mapping[str, Dimensions]]) -> str:
        """The text of profiles.json: what the job said, and what that makes of each input.

        `inputs` of each graph, by its name; those of a graph that is alone, whose name is empty, stand without it.
        """
        said = {name: getattr(self, name) for name in self.__dataclass_fields__}
        sizes = {name: str(each) for name, each in said.items() if each is not None}
        points = ("min", "opt", "max")
        shapes = {
            graph: {name: dict(zip(points, each, strict=True)) for name, each in self.shapes(own).items()}
            for graph, own in inputs.items()
        }
        return json.dumps({**sizes, "inputs": shapes.get("", shapes)}, indent=2) + "\n"

    @classmethod
    def read(cls, text: str) -> Profile:
        """The profile of a profiles.json."""
        told = json.loads(text)
        return cls.parse(",".join(f"{name}={told[name]}" for name in cls.__dataclass_fields__ if name in told))

    def axes(self) -> dict[str, Range]:
        """The ranges of a graph's named axes."""
        past = Range(0, 0, self.length.max - 1)
        total = Range(self.length.min, self.length.opt, self.length.max + past.max)
        source = self.source or self.length
        read = {SOURCE: source, READ: Range(0, 0, source.max)}
        return {BATCH: self.batch, NEW: self.length, PAST: past, TOTAL: total} | read

    def shapes(self, inputs: Mapping[str, Dimensions]) -> dict[str, Shapes]:
        """The three shapes of every input. Raises BuildError for an axis that has no range."""
        axes = self.axes()
        shapes: dict[str, Shapes] = {}
        for name, dimensions in inputs.items():
            strange = [axis for axis in dimensions if isinstance(axis, str) and axis not in axes]
            if strange:
                raise BuildError(f"the input {name} has an axis {strange[0]!r} that no profile gives a size")
            ranges = [axes[axis] if isinstance(axis, str) else Range(axis, axis, axis) for axis in dimensions]
            shapes[name] = ([one.min for one in ranges], [one.opt for one in ranges], [one.max for one in ranges])
        return shapes

    def admit(self, length: int) -> None:
        """Raises BuildError for a text outside the profile. `length`: its tokens, the cached ones included."""
        if not self.length.min <= length <= self.length.max:
            raise BuildError(
                f"a text of {length} tokens is outside the engine's profile, length={self.length}; build it with a "
                "profile that covers it, the target's option of that name"
            )

    def batched(self, ids: Sample, mask: Ids, forward: Callable[[Sample, Ids], Floats]) -> Floats:
        """`forward` over [B, T] ids and mask, or pictures, in batches that the profile takes; a small one is filled up
        with copies."""
        if ids.ndim == 2:
            self.admit(ids.shape[1])
        answers = []
        for rows in self.batches(len(ids)):
            count = len(ids[rows])
            fill = (0, max(0, self.batch.min - count))
            filled = [np.pad(one[rows], [fill, *[(0, 0)] * (one.ndim - 1)], "edge") for one in (ids, mask)]
            answers.append(forward(*filled)[:count])
        return np.concatenate(answers)

    def batches(self, count: int) -> Iterator[slice]:
        """Which of so many rows go together, as many as the profile takes."""
        for begin in range(0, count, self.batch.max):
            yield slice(begin, begin + self.batch.max)


class Port(NamedTuple):
    """An input or output of a graph: its ONNX element type and its axes, named or numbers."""

    kind: int
    dimensions: list[str | int]


def ports(model_onnx: Path) -> tuple[dict[str, Port], dict[str, Port]]:
    """A graph's inputs and outputs by name; its weights are not read."""
    import onnx

    graph = onnx.load(model_onnx, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: _port(value) for value in graph.input if value.name not in weights}
    return inputs, {value.name: _port(value) for value in graph.output}


def _port(value: object) -> Port:
    import onnx

    assert isinstance(value, onnx.ValueInfoProto)
    tensor = value.type.tensor_type
    return Port(tensor.elem_type, [axis.dim_param or axis.dim_value for axis in tensor.shape.dim])
