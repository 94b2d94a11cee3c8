"""The tokenizer in this folder."""

from __future__ import annotations

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
