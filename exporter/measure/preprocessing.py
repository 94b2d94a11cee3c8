"""An artifact's own image processor against the checkpoint's: the same pixel values of a few pictures.

The checkpoint's pixel values travel with the reference, beside the pictures that they are of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporter.report.result import Figure
from exporter.runner import Floats

PROCESSED = "processor.npz"
FIGURE = "processor_error"
LIMIT = 1e-3  # a tenth of the least step of a colour, after the usual normalization


@dataclass(frozen=True)
class Processed:
    """Pictures uint8 [height, width, 3], each of its own size, and what the checkpoint's processor makes of them."""

    pictures: tuple[NDArray[np.uint8], ...]
    pixels: Floats

    def save(self, path: Path) -> None:
        np.savez_compressed(
            path,
            sizes=np.array([picture.shape for picture in self.pictures]),
            bytes=np.concatenate([picture.ravel() for picture in self.pictures]),
            pixels=self.pixels,
        )

    @classmethod
    def load(cls, path: Path) -> Processed:
        with np.load(path, allow_pickle=False) as data:
            sizes, pixels = data["sizes"], data["pixels"]
            pieces = np.split(data["bytes"], np.cumsum(sizes.prod(1))[:-1])
        return cls(tuple(piece.reshape(size) for piece, size in zip(pieces, sizes, strict=True)), pixels)


def compare_processor(process: Callable[[Sequence[NDArray[np.uint8]]], Floats], told: Processed) -> dict[str, Figure]:
    """The largest difference of a pixel value, as the model is fed it."""
    got = process(told.pictures)
    if got.shape != told.pixels.shape:
        sizes = [" x ".join(map(str, one.shape[1:])) for one in (got, told.pixels)]
        return {FIGURE: Figure(float(np.abs(told.pixels).max()), detail=f"it makes {sizes[0]}, not {sizes[1]}")}
    return {FIGURE: Figure(float(np.abs(got - told.pixels).max()))}
