"""What a classifier's logits say, by the names of its labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


class Classes:
    """The labels in a folder's config.json."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))

    def scores(self, logits: np.ndarray) -> dict[str, float]:
        """Of [C]: each label's probability, the likeliest first; of a model that answers numbers, the numbers."""
        logits = logits.astype(np.float64)
        usual = "regression" if len(logits) == 1 else "single_label_classification"
        problem = self.config.get("problem_type") or usual
        if problem == "multi_label_classification":  # each label is a yes or no of its own
            answers = 1 / (1 + np.exp(-logits))
        elif problem == "regression" or len(logits) == 1:
            answers = logits
        else:
            powers = np.exp(logits - logits.max())
            answers = powers / powers.sum()
        names = self.config.get("id2label") or {}
        order = range(len(answers)) if answers is logits else np.argsort(-answers)
        return {names.get(str(at), f"LABEL_{at}"): float(answers[at]) for at in order}
