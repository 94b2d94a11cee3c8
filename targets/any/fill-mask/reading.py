"""What stands between a text and a masked model: the tokens that it is fed, and the likeliest ones behind each mask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from words import longest, open_tokenizer

BEST = 5


class Reading:
    """`feeds` is what the model gets of a text with the tokenizer's mask in it, `answer` what becomes of its logits."""

    def __init__(self, folder: Path) -> None:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        mask = settings["mask_token"]
        self.mask = mask if isinstance(mask, str) else mask["content"]
        self.tokenizer, self.longest = open_tokenizer(folder), longest(folder)
        self.ids: list[int] = []

    def feeds(self, text: str, limit: int | None = None) -> dict[str, list[int]]:
        if (most := limit or self.longest) is not None:
            self.tokenizer.enable_truncation(most)
        read = self.tokenizer.encode(text.replace("[MASK]", self.mask))
        self.ids = read.ids
        return {"input_ids": read.ids, "attention_mask": read.attention_mask, "token_type_ids": read.type_ids}

    def answer(self, logits: np.ndarray) -> list[list[dict[str, Any]]]:
        """Of [tokens, V]: for each mask its likeliest tokens with their probabilities."""
        found = []
        for place in (at for at, token in enumerate(self.ids) if token == self.tokenizer.token_to_id(self.mask)):
            powers = np.exp(logits[place].astype(np.float64) - logits[place].max())
            chances = powers / powers.sum()
            best = map(int, np.argsort(-chances)[:BEST])
            found.append([{"token": self.tokenizer.id_to_token(one), "score": float(chances[one])} for one in best])
        return found
