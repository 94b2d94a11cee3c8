"""An artifact's own feature extractor against the checkpoint's: the same inputs of a few sounds.

The checkpoint's inputs travel with the reference, beside the sounds that they are of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporter.measure.preprocessing import FIGURE
from exporter.report.result import Figure
from exporter.runner import Floats

EXTRACTED = "extractor.npz"


@dataclass(frozen=True)
class Extracted:
    """Sounds float32 [T] at `rate`, each of its own length, and what the checkpoint's extractor makes of them."""

    rate: int
    sounds: tuple[Floats, ...]
    inputs: tuple[Floats, ...]

    def save(self, path: Path) -> None:
        both = {"sound": self.sounds, "input": self.inputs}
        arrays = {f"{name}_{number}": it for name, its in both.items() for number, it in enumerate(its)}
        np.savez_compressed(path, rate=np.array(self.rate), count=np.array(len(self.sounds)), **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Extracted:
        with np.load(path, allow_pickle=False) as data:
            count = range(int(data["count"]))
            sounds, inputs = (tuple(data[f"{name}_{number}"] for number in count) for name in ("sound", "input"))
            return cls(int(data["rate"]), sounds, inputs)


def compare_extractor(extract: Callable[[Floats, int], Floats], told: Extracted) -> dict[str, Figure]:
    """The largest difference of a number that the model is fed."""
    worst = 0.0
    for sound, expected in zip(told.sounds, told.inputs, strict=True):
        got = extract(sound, told.rate)
        if got.shape != expected.shape:
            sizes = [" x ".join(map(str, one.shape)) for one in (got, expected)]
            return {FIGURE: Figure(float(np.abs(expected).max()), detail=f"it makes {sizes[0]}, not {sizes[1]}")}
        worst = max(worst, float(np.abs(got - expected).max()))
    return {FIGURE: Figure(worst)}
