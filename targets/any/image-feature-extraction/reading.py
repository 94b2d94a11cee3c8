"""What stands between a picture and its vector: the pixel values that a model is fed, and one vector of its states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from picture import pixels


class Reading:
    """`feeds` is what the model gets of a picture's file, `answer` what becomes of its states."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def feeds(self, picture: str, limit: int | None = None) -> dict[str, np.ndarray]:
        return {"pixel_values": pixels(self.folder, picture)}

    def answer(self, states: np.ndarray) -> list[float]:
        """Of [P, H] or [H, height, width]: the state of the whole picture beside a square of patches, or the mean."""
        if states.ndim == 3:
            vector = states.mean((1, 2))
        else:
            squares = {side * side + more for side in range(1, len(states)) for more in (1, 2)}
            vector = states[0] if len(states) in squares else states.mean(0)
        numbers: list[float] = vector.astype(np.float64).tolist()
        return numbers
