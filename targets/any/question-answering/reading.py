"""What stands between a question with its text and a model: the tokens that it is fed, and the answer in the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from words import longest, open_tokenizer

LONGEST = 30  # tokens of an answer


class Reading:
    """`feeds` is what the model gets of a question and a text, `answer` what becomes of its logits."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer, self.longest = open_tokenizer(folder), longest(folder)
        self.text, self.places, self.of_text = "", list[tuple[int, int]](), np.zeros(0, bool)

    def feeds(self, question: str, text: str, limit: int | None = None) -> dict[str, list[int]]:
        if (most := limit or self.longest) is not None:
            self.tokenizer.enable_truncation(most, strategy="only_second")
        read = self.tokenizer.encode(question, text)
        self.text, self.places = text, read.offsets
        self.of_text = np.array([which == 1 for which in read.sequence_ids])
        return {"input_ids": read.ids, "attention_mask": read.attention_mask, "token_type_ids": read.type_ids}

    def answer(self, logits: np.ndarray) -> dict[str, Any]:
        """Of [tokens, 2], begin's and end's: the likeliest span of the text."""
        masked = np.where(self.of_text[:, None], logits.astype(np.float64), -np.inf)
        powers = np.exp(masked - masked.max(0))
        begin, end = (powers / powers.sum(0)).T
        length = np.arange(len(begin)) - np.arange(len(begin))[:, None]
        chances = np.where((length >= 0) & (length < LONGEST), begin[:, None] * end, 0.0)
        first, last = map(int, np.unravel_index(int(chances.argmax()), chances.shape))
        start, stop = self.places[first][0], self.places[last][1]
        return {"answer": self.text[start:stop], "score": float(chances[first, last]), "start": start, "end": stop}
