"""What stands between a text and a tagger: the tokens that it is fed, and the class of each of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from words import longest, open_tokenizer


class Reading:
    """`feeds` is what the model gets of a text, `answer` what becomes of its logits."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.names = config.get("id2label") or {}
        self.tokenizer, self.longest = open_tokenizer(folder), longest(folder)
        self.text, self.places, self.special = "", list[tuple[int, int]](), list[int]()

    def feeds(self, text: str, limit: int | None = None) -> dict[str, list[int]]:
        if (most := limit or self.longest) is not None:
            self.tokenizer.enable_truncation(most)
        read = self.tokenizer.encode(text)
        self.text, self.places, self.special = text, read.offsets, read.special_tokens_mask
        return {"input_ids": read.ids, "attention_mask": read.attention_mask, "token_type_ids": read.type_ids}

    def answer(self, logits: np.ndarray) -> list[dict[str, Any]]:
        """Of [tokens, C]: each token with a class other than "O", and where it stands in the text."""
        found = []
        for row, (begin, end), special in zip(logits.astype(np.float64), self.places, self.special, strict=True):
            powers = np.exp(row - row.max())
            best = int(row.argmax())
            name = self.names.get(str(best), f"LABEL_{best}")
            if not special and name != "O":
                chance = float(powers[best] / powers.sum())
                words = self.text[begin:end]
                found.append({"entity": name, "score": chance, "word": words, "start": begin, "end": end})
        return found
