"""What linear layers are fed, in numbers: collected in one pass over token windows, kept in one safetensors file.

A histogram has a bin for each bfloat16 number: a float32 value is counted by the upper 16 of its bits. So a bin is
never wider than 1/128 of what it holds, however far the outliers are, no range has to be known before the first value
comes, and the order of the windows changes nothing. Counting is a shift and a bincount, a tenth of a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exporter.checkpoint.linear import are_tokens, asked, channels_last, weighted_layers
from exporter.checkpoint.tokenizer import check_ids, rows_of
from exporter.errors import JobError
from exporter.progress import Counted, counting
from exporter.runner import Floats

if TYPE_CHECKING:
    from torch import Tensor

FILE = "statistics.safetensors"
_CODES = 1 << 16


@dataclass(frozen=True)
class Histogram:
    """How often values fell into bins: `low` and `high` edges float64 [bins], `counts` int64 [bins].

    The bins are in ascending order, none is empty, and what lies between them was never seen. The outer edges are the
    exact minimum and maximum: a bin of a single value, such as 0, has no width.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    counts: NDArray[np.int64]

    @property
    def minimum(self) -> float:
        return float(self.low[0])

    @property
    def maximum(self) -> float:
        return float(self.high[-1])


@dataclass(frozen=True)
class Statistics:
    """A layer's inputs over `rows` tokens.

    `low` and `high` (float32) and the sums of squares `squares` (float64) are per channel, [K]; `histogram` counts all
    the values together.
    """

    rows: int
    low: Floats
    high: Floats
    squares: NDArray[np.float64]
    histogram: Histogram

    @property
    def mean_squares(self) -> Floats:
        """Of each channel, float32 [K]."""
        result: Floats = (self.squares / max(self.rows, 1)).astype(np.float32)
        return result

    @property
    def absmax(self) -> Floats:
        """The largest absolute value of each channel, float32 [K]."""
        result: Floats = np.maximum(-self.low, self.high)
        return result


def collect(model: Any, pieces: Tensor, progress: Counted) -> dict[str, Statistics]:
    """One pass over [windows, window] token ids, or pictures [n, C, H, W]: statistics of the layers.

    They are in the model's order of execution. A layer that was never fed a row, such as an expert that no token chose,
    is left out. Raises JobError where a layer is fed NaN or Inf.
    """
    import torch

    if are_tokens(pieces):
        check_ids(rows_of(model), pieces, "the calibration text")
    sums: dict[str, _Sums] = {}
    # The latest input with the sums before and after it: q, k and v, or gate and up, are fed one tensor, counted once.
    latest: tuple[Tensor, _Sums | None, _Sums] | None = None

    def add(name: str, inputs: Tensor) -> None:
        nonlocal latest
        if not inputs.numel():
            return
        before = sums.get(name)
        if latest is None or inputs is not latest[0] or before is not latest[1]:
            latest = (inputs, before, _Sums.of(inputs, before))
        sums[name] = latest[2]

    layers = weighted_layers(model)
    with torch.inference_mode():
        passes(model, pieces, layers, add, head_of(model, layers), progress)
    return {name: found.statistics(name) for name, found in sums.items()}


class _EnoughError(Exception):
    """Ends a forward pass after the last layer that is wanted."""


def passes(
    model: Any,
    pieces: Tensor,
    layers: Mapping[str, Any],
    see: Callable[[str, Tensor], None],
    last: str | None,
    progress: Counted,
) -> None:
    """Runs a model on each of [windows, window], or pictures, and tells `see` the layers' inputs.

    A pass ends when the layer `last` has been fed: nothing of what comes after it is computed.
    """

    def told(name: str, inputs: Tensor) -> None:
        see(name, inputs)
        if name == last:
            raise _EnoughError

    with watched(layers, told):
        for piece in counting(list(pieces), progress):
            with suppress(_EnoughError):
                asked(model, piece[None])


def head_of(model: Any, layers: Mapping[str, Any]) -> str | None:
    """The layer that makes a vocabulary's logits: no other is fed after it, and it takes a fifth of a small model's
    time. None where there is none.
    """
    found = getattr(model, "get_output_embeddings", None)
    head = found and found()
    return next((name for name, module in layers.items() if module is head), None)


@contextmanager
def watched(layers: Mapping[str, Any], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within the block `see` is told each input of these layers, by name, before the layer computes."""

    def hook(name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        return lambda module, inputs: see(name, channels_last(module, inputs[0]))

    hooks = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


@dataclass(frozen=True)
class _Sums:
    """Statistics while they grow: low, high and squares [K], and `codes` int64 [65536] by a value's upper 16 bits."""

    rows: int
    low: Tensor
    high: Tensor
    squares: Tensor
    codes: Tensor

    @classmethod
    def of(cls, inputs: Tensor, before: _Sums | None) -> _Sums:
        """The sums with inputs [..., K] added."""
        import torch

        rows = inputs.float().reshape(-1, inputs.shape[-1])
        low, high = rows.amin(0), rows.amax(0)
        # A square's rounding to float32 is nothing; a long sum in it would lose the small terms.
        squares = rows.square().sum(0, dtype=torch.float64)
        upper = (rows.contiguous().view(torch.int32) >> 16).add_(_CODES // 2)
        codes = torch.bincount(upper.view(-1), minlength=_CODES)
        if before is None:
            return cls(len(rows), low, high, squares, codes)
        return cls(
            before.rows + len(rows),
            torch.minimum(before.low, low),
            torch.maximum(before.high, high),
            before.squares + squares,
            before.codes + codes,
        )

    def statistics(self, name: str) -> Statistics:
        low, high = self.low.numpy(), self.high.numpy()
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise JobError(
                f"the layer {name} is fed NaN or Inf on the calibration text: there is nothing to calibrate; "
                "give a checkpoint that works in float32"
            )
        histogram = _histogram(self.codes.numpy(), float(low.min()), float(high.max()))
        return Statistics(self.rows, low, high, self.squares.numpy(), histogram)


def _histogram(codes: NDArray[np.int64], minimum: float, maximum: float) -> Histogram:
    """The occupied bins of counts by code: the upper half of a float32 as a signed number, plus 32768."""
    [used] = codes.nonzero()
    negative = used < _CODES // 2
    magnitudes = used % (_CODES // 2)
    inner, outer = ((magnitudes + more << 16).astype(np.uint32).view(np.float32) for more in (0, 1))
    outer[magnitudes == 0] = 0  # the smallest of all numbers, below 1e-40, count as the 0 that most of them are
    low, high = np.where(negative, -outer, inner), np.where(negative, -inner, outer)
    # Of negative numbers the larger code is the smaller number; -0.0 comes before 0.0.
    order = np.lexsort((high, low))
    low, high = (edges[order].astype(np.float64).clip(minimum, maximum) for edges in (low, high))
    return Histogram(low, high, codes[used][order])


def save_statistics(statistics: Mapping[str, Statistics], folder: Path) -> None:
    """Writes statistics.safetensors: of each module `NAME.low`, `.high`, `.squares`, `.rows`, `.edges`, `.counts`.

    `.edges` are [2, bins], lower and upper.
    """
    from safetensors.numpy import save_file

    arrays: dict[str, NDArray[Any]] = {}
    for name, its in statistics.items():
        # Edges are float32 numbers: nothing is lost.
        edges = np.stack([its.histogram.low, its.histogram.high]).astype(np.float32)
        arrays |= {f"{name}.low": its.low, f"{name}.high": its.high, f"{name}.squares": its.squares}
        arrays |= {f"{name}.edges": edges, f"{name}.counts": its.histogram.counts, f"{name}.rows": np.array([its.rows])}
    save_file(arrays, folder / FILE)


def load_statistics(folder: Path) -> dict[str, Statistics]:
    """The statistics that exporter.quantization.calibrate wrote into a folder, by module name."""
    from safetensors.numpy import load_file

    arrays = load_file(folder / FILE)
    result = {}
    for name in (key.removesuffix(".rows") for key in arrays if key.endswith(".rows")):
        low, high = arrays[f"{name}.edges"].astype(np.float64)
        rows, histogram = int(arrays[f"{name}.rows"][0]), Histogram(low, high, arrays[f"{name}.counts"])
        result[name] = Statistics(
            rows, arrays[f"{name}.low"], arrays[f"{name}.high"], arrays[f"{name}.squares"], histogram
        )
    return result
