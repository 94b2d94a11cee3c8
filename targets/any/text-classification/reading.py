"""What stands between a text, or two, and a classifier: the tokens that it is fed, and the labels' probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from classes import Classes
from words import longest, open_tokenizer


class Reading:
    """`feeds` is what the model gets of a text, or of a pair of them; `answer` what becomes of its logits."""

    def __init__(self, folder: Path) -> None:
        self.classes, self.tokenizer, self.longest = Classes(folder), open_tokenizer(folder), longest(folder)

    def feeds(self, text: str, pair: str | None = None, limit: int | None = None) -> dict[str, list[int]]:
        if (most := limit or self.longest) is not None:
            self.tokenizer.enable_truncation(most)
        read = self.tokenizer.encode(text, pair)
        return {"input_ids": read.ids, "attention_mask": read.attention_mask, "token_type_ids": read.type_ids}

    def answer(self, logits: np.ndarray) -> dict[str, float]:
        """Of [C]."""
        return self.classes.scores(logits)
