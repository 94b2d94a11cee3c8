"""Frames' answers as a transcript: the likeliest character of each, by the checkpoint's own tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from exporter.errors import JobError, one_line
from exporter.runner import Floats

Transcribe = Callable[[Floats], str]  # the answers [F, V] to a sound's frames


def transcriber(folder: Path, trust: bool) -> Transcribe:
    """How a folder's tokenizer reads frames: repeats once, blanks not, a word's end as a space. Raises JobError."""
    tokenizer = _tokenizer(folder, trust)
    return lambda frames: str(tokenizer.decode(frames.argmax(-1).tolist()))


def _tokenizer(folder: Path, trust: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    except (ValueError, KeyError, OSError, ImportError, TypeError) as error:
        raise JobError(
            f"the tokenizer of {folder}, which writes its transcripts, cannot be loaded: {one_line(error)}"
        ) from error
    if not hasattr(tokenizer, "word_delimiter_token"):
        raise JobError(
            f"{folder} has a {type(tokenizer).__name__}, and transcripts of a CTC model are written by a "
            "Wav2Vec2CTCTokenizer: copy vocab.json and tokenizer_config.json there from the model's training"
        )
    return tokenizer


def check_characters(model: str, folder: Path, config: Mapping[str, Any], trust: bool) -> None:
    """Raises JobError for a tokenizer that does not fit the model's classes."""
    tokenizer = _tokenizer(folder, trust)
    if len(tokenizer) > config["vocab_size"]:
        raise JobError(
            f"the tokenizer of {model} has {len(tokenizer)} characters, and its config.json {config['vocab_size']} "
            "classes (vocab_size): one of the two is another model's"
        )
    if tokenizer.pad_token_id != config["pad_token_id"]:
        raise JobError(
            f"CTC's blank is {config['pad_token_id']} for {model} (pad_token_id of config.json), and "
            f"{tokenizer.pad_token_id} for its tokenizer: every transcript would be wrong; make the two the same"
        )
