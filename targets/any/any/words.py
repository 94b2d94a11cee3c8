"""The tokenizer in this folder, and how many tokens of a text its model reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def open_tokenizer(folder: Path) -> Any:
    """One of the package tokenizers, which cuts and fills no text."""
    from tokenizers import Tokenizer

    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    else:
        from transformers import AutoTokenizer  # pip install transformers: it reads the older forms of a tokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def longest(folder: Path) -> int | None:
    """Tokens that are read of a text; a tokenizer without a limit of its own says 10^30."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings = folder / "tokenizer_config.json"
    said = json.loads(settings.read_text(encoding="utf-8")).get("model_max_length") if settings.is_file() else None
    limit = said or config.get("max_position_embeddings") or 0
    return int(limit) if 0 < limit < 1 << 20 else None
