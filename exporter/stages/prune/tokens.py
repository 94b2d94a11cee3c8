"""A smaller tokenizer of the same words: which tokens must stay, and tokenizer.json with their new numbers.

What stays can spell whatever the whole could, and a text whose tokens all stay is cut as it was:

- BPE applies its merges one after the other, so with a token stay all that its own merging goes through. A merge stays
  when its two parts and its result do. Then each step that the old tokenizer takes on such a text is one of the new's,
  and of those that the new could take it is the first, as it was among more.
- WordPiece takes the longest piece that fits: the same one, for no other has come.
- Unigram takes the path of the highest score: the same one, for its pieces stay with their scores. An unknown
  character's score is worked out from the lowest of all, so the piece that has that stays too.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from exporter.errors import BuildError

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_BYTES = 256
_KINDS = ("BPE", "WordPiece", "Unigram")


def kept_tokens(spec: Mapping[str, Any], used: set[int]) -> list[int]:
    """The ids of the tokens that stay, in the order of their new numbers: 0, 1, …

    `spec` is a tokenizer.json, `used` the ids that must stay. With them stay all added tokens, those that the tokenizer
    names (unknown, what a post-processor writes), and the alphabet: bytes where it spells with bytes, else every
    single character. Raises BuildError for a model of another kind.
    """
    vocabulary, kept = _vocabulary(spec), set(used)
    added = {one["content"]: int(one["id"]) for one in spec.get("added_tokens") or ()}
    every = vocabulary | added
    kept |= {*added.values()} | {every[token] for token in _named(spec) if token in every}
    kept |= {vocabulary[token] for token in _alphabet(spec, vocabulary)}
    if spec["model"]["type"] == "BPE":
        kept |= _parts(spec["model"], vocabulary, kept)
    own = {*vocabulary.values()}
    # The tokenizers library numbers what its model does not have after all that it has.
    return sorted(kept & own) + sorted(kept - own)


def renumbered(spec: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """A tokenizer.json with the tokens `kept` alone, numbered by their place in it."""
    new = {old: place for place, old in enumerate(kept)}
    result = copy.deepcopy(dict(spec))
    model, vocabulary = result["model"], _vocabulary(spec)
    if model["type"] == "Unigram":
        model["vocab"] = [piece for old, piece in enumerate(model["vocab"]) if old in new]
        if model.get("unk_id") is not None:
            model["unk_id"] = new[model["unk_id"]]
    else:
        stays = {token: new[old] for token, old in vocabulary.items() if old in new}
        model["vocab"] = dict(sorted(stays.items(), key=lambda item: item[1]))
        if model["type"] == "BPE":
            pairs = model["merges"]
            model["merges"] = [[a, b] for a, b in pairs if a in stays and b in stays and a + b in stays]
    for one in result.get("added_tokens") or ():
        one["id"] = new[one["id"]]
    if result.get("padding"):
        result["padding"]["pad_id"] = new.get(result["padding"]["pad_id"], 0)
    for part in _processors(result):
        for token in (part.get("special_tokens") or {}).values():
            token["ids"] = [new[one] for one in token["ids"]]
        for name in ("sep", "cls"):  # of BertProcessing and RobertaProcessing
            if name in part:
                part[name] = [part[name][0], new[part[name][1]]]
    return result


def spells_bytes(spec: Mapping[str, Any]) -> bool:
    """Whether a tokenizer can spell any text at all, a byte each where need be."""
    if spec["model"].get("byte_fallback"):
        return len([token for token in _vocabulary(spec) if _BYTE.fullmatch(token)]) == _BYTES
    parts = (spec.get("pre_tokenizer"), *((spec.get("pre_tokenizer") or {}).get("pretokenizers") or ()))
    return any(part and part["type"] == "ByteLevel" for part in parts)


def _vocabulary(spec: Mapping[str, Any]) -> dict[str, int]:
    """The model's own tokens, by what they spell. Raises BuildError."""
    model = spec["model"]
    kind = model.get("type")
    if kind not in _KINDS:
        raise BuildError(f"--prune vocabulary knows tokenizers of {', '.join(_KINDS)}, and this one is {kind}")
    if kind == "BPE" and model.get("continuing_subword_prefix"):
        raise BuildError("--prune vocabulary does not know BPE with a prefix on the continuation of words")
    if kind == "Unigram":
        return {piece: number for number, (piece, _) in enumerate(model["vocab"])}
    return dict(model["vocab"])


def _processors(spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A post-processor, or the parts of a sequence of them."""
    part = spec.get("post_processor")
    if part:
        yield from part["processors"] if part["type"] == "Sequence" else (part,)


def _named(spec: Mapping[str, Any]) -> Iterator[str]:
    """The tokens that a tokenizer speaks of outside its vocabulary."""
    model = spec["model"]
    if model.get("unk_token"):
        yield model["unk_token"]
    if model.get("unk_id") is not None:
        yield model["vocab"][model["unk_id"]][0]
    if spec.get("padding"):
        yield spec["padding"]["pad_token"]
    for part in _processors(spec):
        yield from (one for token in (part.get("special_tokens") or {}).values() for one in token["tokens"])
        yield from (part[name][0] for name in ("sep", "cls") if name in part)


def _alphabet(spec: Mapping[str, Any], vocabulary: Mapping[str, int]) -> set[str]:
    """The tokens that spell what no longer token does."""
    model = spec["model"]
    if model["type"] == "Unigram":
        lowest = min(model["vocab"], key=lambda piece: float(piece[1]))[0]
        single = {piece for piece in vocabulary if len(piece) == 1} | {lowest}
    elif model["type"] == "WordPiece":
        prefix = model["continuing_subword_prefix"]
        single = {piece for piece in vocabulary if len(piece.removeprefix(prefix)) == 1}
    else:
        single = vocabulary.keys() - {a + b for a, b in model["merges"]}  # an end of a word is marked: no one character
    if not (model.get("byte_fallback") and spells_bytes(spec)):
        return single
    # Other characters are spelt in bytes; a model has seen ASCII's so seldom in these that they are no way to write it.
    short = {piece for piece in single if piece.isascii() and len(piece) == 1}
    lasting = {lowest} if model["type"] == "Unigram" else set()
    return short | lasting | {piece for piece in vocabulary if _BYTE.fullmatch(piece)}


def _parts(model: Mapping[str, Any], vocabulary: Mapping[str, int], kept: set[int]) -> set[int]:
    """The ids of all that BPE goes through on its way to the kept tokens.

    Merges within a token never look beyond it, so they are the same in a text as on the token alone.
    """
    ranks: dict[tuple[str, str], int] = {}
    for rank, (left, right) in enumerate(model["merges"]):
        ranks.setdefault((left, right), rank)
    suffix, found = model.get("end_of_word_suffix") or "", set()
    for token, number in vocabulary.items():
        if number in kept:
            found |= {vocabulary[part] for part in _merged(token, ranks, suffix) if part in vocabulary}
    return found


def _merged(token: str, ranks: Mapping[tuple[str, str], int], suffix: str) -> Iterator[str]:
    """Characters of a token, then what its merges make, in order."""
    symbols = list(token)
    if suffix and token.endswith(suffix) and token != suffix:
        symbols = list(token.removesuffix(suffix))
        symbols[-1] += suffix
    yield from symbols
    while len(symbols) > 1:
        pairs = [ranks.get(pair, len(ranks)) for pair in pairwise(symbols)]
        rank = min(pairs)
        if rank == len(ranks):
            return
        place = pairs.index(rank)
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
        yield symbols[place]
