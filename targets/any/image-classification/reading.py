"""What stands between a picture and a classifier: the pixel values that it is fed, and the labels' probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from classes import Classes
from picture import pixels


class Reading:
    """`feeds` is what the model gets of a picture's file, `answer` what becomes of its logits."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.classes = folder, Classes(folder)

    def feeds(self, picture: str, limit: int | None = None) -> dict[str, np.ndarray]:
        return {"pixel_values": pixels(self.folder, picture)}

    def answer(self, logits: np.ndarray) -> dict[str, float]:
        """Of [C]."""
        return self.classes.scores(logits)
