"""Whether a tokenizer is whole and fits a model's embedding: one check for every format that transformers reads.

transformers makes an empty tokenizer of a configuration alone, for which every word is unknown, and looks up no id
before the embedding does: then it is an IndexError, or on a GPU another model's answer.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from exporter.checkpoint.folder import has_tokenizer, tokenizer_folder
from exporter.errors import JobError, one_line

_EMITTED = ("bos", "eos", "unk", "sep", "pad", "cls")  # what a tokenizer writes that no text has to spell
_ANY = 1 << 62  # rows of a model that has one for every id
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def read_tokenizer(folder: Path, trust: bool) -> Any:
    """The tokenizer of a folder, as transformers reads it, once it is known to be whole. Raises JobError."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    except (ValueError, KeyError, OSError, ImportError, TypeError) as error:
        if not trust and _brings_code(folder):
            raise JobError(
                f"the tokenizer of {folder} brings Python code of its own; read it, then run again with "
                "--trust-remote-code"
            ) from error
        raise JobError(f"the tokenizer of {folder} cannot be loaded: {one_line(error)}") from error
    words = [word for word in tokenizer.get_vocab() if word not in tokenizer.get_added_vocab()]
    if not words:
        raise JobError(
            f"{folder} has no tokenizer, or half of one: it knows no word, so every text would be unknown to it; copy "
            "tokenizer.json (or vocab.txt, tokenizer.model, vocab.json with merges.txt) there from the model it is of"
        )
    if _lacks_merges(tokenizer, words):
        raise JobError(
            f"{folder} has half a tokenizer: {len(words)} words, and no merges, without which none of them is found; "
            "copy merges.txt or tokenizer.json there from the model it is of"
        )
    return tokenizer


def _brings_code(folder: Path) -> bool:
    file = folder / "tokenizer_config.json"
    return file.is_file() and bool(json.loads(file.read_text(encoding="utf-8")).get("auto_map"))


def _lacks_merges(tokenizer: Any, words: list[str]) -> bool:
    """Whether byte-pair encoding has words of several characters that nothing puts together."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = json.loads(backend.to_str())["model"] if backend is not None else {}
    if model.get("type") != "BPE" or model.get("merges") or model.get("ignore_merges"):
        return False
    return any(len(word) > 1 and not _BYTE.fullmatch(word) for word in words)


def check_fit(tokenizer: Any, folder: Path, rows: int, base: Any = None) -> list[str]:
    """Refuses a tokenizer with ids beyond the embedding's `rows`, which running it would need. Raises JobError.

    More rows than tokens are padding. Fewer are right where only special tokens have none that no text spells by
    chance: published models are so, and their notes say it. `base`: the model's own tokenizer, where an adapter
    brought `tokenizer`: what it has beyond that was trained, and is lost.
    """
    beyond = {word: number for word, number in tokenizer.get_vocab().items() if number >= rows}
    if not beyond:
        return []
    word, number = max(beyond.items(), key=lambda item: item[1])
    said = f"the tokenizer in {folder} has a token {number} ({word}), and the model {rows} embeddings"
    if base is not None and not beyond.items() <= base.get_vocab().items():
        raise JobError(
            f"{said}; where the adapter was trained with new tokens, save it with save_embedding_layers=True; else "
            "remove that tokenizer"
        )
    for name in _EMITTED:
        if (getattr(tokenizer, f"{name}_token_id", None) or 0) >= rows:
            raise JobError(
                f"{said}: its {name}_token is one, which it writes by itself; name one that has an embedding as "
                f"{name}_token in tokenizer_config.json, or resize the model where it was trained"
            )
    added = tokenizer.added_tokens_decoder
    plain = [word for word, number in beyond.items() if not (number in added and added[number].special)]
    if plain:
        raise JobError(
            f"{said}: ordinary text holds {plain[0]!r}; it is another model's tokenizer, or the model was not resized "
            "for its new tokens"
        )
    few = ", ".join(sorted(beyond)[:3]) + (f" and {len(beyond) - 3} more" if len(beyond) > 3 else "")
    return [
        f"The tokenizer has tokens that the model has no embedding for: {few}. A text that spells one cannot be run."
    ]


def fitting(base: Path, adapters: list[Path], rows: int, trust: bool) -> Any:
    """The tokenizer that a merged model with `rows` embeddings gets; None where nobody has one. Raises JobError."""
    folder = tokenizer_folder(base, adapters)
    if not has_tokenizer(folder):
        return None
    tokenizer = read_tokenizer(folder, trust)
    own = read_tokenizer(base, trust) if folder != base and has_tokenizer(base) else None
    check_fit(tokenizer, folder, rows, own)
    return tokenizer


def lacks_padding(model: Any) -> bool:
    """Whether a classifier answers at a text's last token and cannot tell which that is in a batch: it finds it by a
    padding token, of which its configuration has none."""
    return hasattr(model, "score") and model.config.get_text_config().pad_token_id is None


def name_padding(model: Any, tokenizer: Any) -> str | None:
    """Names the padding token of a classifier that lacks one as its training did: the tokenizer's own, or, as TRL's
    RewardTrainer, the end of a text. Returns a line of history. Without a tokenizer it stays unnamed, and the line says
    so: transformers refuses a batch then. Raises JobError where the tokenizer knows neither."""
    if not lacks_padding(model):
        return None
    if tokenizer is None:
        return "config.json names no pad_token_id, and there is no tokenizer to tell it: one text at a time can be run"
    word, number = "pad", getattr(tokenizer, "pad_token_id", None)
    if number is None:
        word, number = "eos", getattr(tokenizer, "eos_token_id", None)
    if number is None:
        raise JobError(
            f"a {type(model).__name__} needs pad_token_id in its config.json, by which it finds a text's last token, "
            "and its tokenizer has neither a pad_token nor an eos_token: add the one of the training"
        )
    model.config.get_text_config().pad_token_id = number
    return f"pad_token_id {number}, the tokenizer's {word}_token: config.json named none, and a batch needs one"


def rows_of(model: Any) -> int:
    """How many ids a model has embeddings for."""
    weight = getattr(embedding_of(model), "weight", None)
    return _ANY if weight is None else int(weight.shape[0])


def embedding_of(model: Any) -> Any:
    """The module that looks ids up; None where a model does it otherwise, as CANINE, which hashes them."""
    try:
        return model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def check_ids(rows: int, ids: Any, text: str) -> None:
    """Refuses a text whose ids (an array or a tensor) have no embedding. Raises JobError."""
    if len(ids) and (largest := int(ids.max())) >= rows:
        raise JobError(
            f"{text} spells a special token, id {largest}, and the model has {rows} embeddings; take it out, or give "
            "another text"
        )
