"""The lengths of text at which a model begins to compute otherwise, as its configuration names them.

A graph that was traced below one of them can be right there and wrong beyond: a window that it does not have, the
factors of longrope or of a dynamic rope for short texts, BigBird's full attention in the place of the sparse one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from exporter.form import FORMS

# Lists hold a value for each layer. chunk: Llama 4's chunked attention, and the scan of a state space model.
_WINDOW = re.compile(r"(?:^|_)(?:windows?|window_size|window_length|chunk_size|chunk_length|local_attention)$")
_FIXED = re.compile(r"(?:^|_)(?:original_max_position_embeddings|relative_attention_max_distance|position_buckets)$")
# Of other modalities, and of the weights' format.
_ELSEWHERE = re.compile(r"vision|audio|image|video|speech|quant|feed_forward")
_SLIDING, _CHUNKED = ("sliding", "local"), ("chunk",)


@dataclass(frozen=True, order=True)
class Boundary:
    """Up to `tokens` tokens it makes no difference. `name` has the value: "sliding_window 4096".

    `switch`: beyond it every position is computed otherwise, so that a KV cache that was begun below it is of neither
    side. `unbounded`: the model takes longer texts than its positions by it, as a dynamic rope does.
    """

    tokens: int
    name: str
    switch: bool = False
    unbounded: bool = False


def find_boundaries(config: Mapping[str, Any], task: str, max_length: int | None) -> tuple[Boundary, ...]:
    """Those of a config.json, or of what transformers makes of it, that a text can reach; the nearest first.

    `max_length`: tokens that the model can take, None without a limit. A tokenizer's is only advice to a decoder.
    """
    positions = _positions(config)
    limit = positions if FORMS[task].cached else max_length or positions
    found = {one.tokens: one for one in sorted(_found(config, ""), reverse=True)}
    return tuple(sorted(one for one in found.values() if one.unbounded or limit is None or one.tokens < limit))


def positions_of(config: Mapping[str, Any], task: str, max_length: int | None) -> int | None:
    """How many tokens the model takes; None where nothing says so, or where its rope goes on."""
    if any(one.unbounded for one in _found(config, "")):
        return None
    return _positions(config) if FORMS[task].cached else max_length or _positions(config)


def _positions(config: Mapping[str, Any]) -> int | None:
    for place in (config, *(it for name, it in _parts(config))):
        value = place.get("max_position_embeddings")
        if _is_length(value):
            return value
    return None


def _parts(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, value in config.items():
        if isinstance(value, Mapping) and all(isinstance(it, str) for it in value) and not _ELSEWHERE.search(name):
            yield name, value  # not the classes' names by their numbers


def _found(config: Mapping[str, Any], path: str, positions: int | None = None) -> Iterator[Boundary]:
    own = config.get("max_position_embeddings")
    positions = own if _is_length(own) else positions
    for name, value in config.items():
        if _ELSEWHERE.search(name) or (_WINDOW.search(name) and not _is_used(config, name)):
            continue
        if _WINDOW.search(name) or _FIXED.search(name):
            for length in sorted({int(it) for it in (value if isinstance(value, list) else [value]) if _is_length(it)}):
                switch = name.endswith("original_max_position_embeddings")
                yield Boundary(length, f"{path}{name} {length}", switch)
    if config.get("attention_type") == "block_sparse":  # BigBird's; a shorter text is attended to as a whole
        block, random = config.get("block_size"), config.get("num_random_blocks")
        if _is_length(block) and isinstance(random, int):
            yield Boundary((5 + 2 * random) * block, f"{path}attention_type block_sparse {(5 + 2 * random) * block}")
    if (limit := _dynamic(config, positions)) is not None:
        yield Boundary(limit, f"{path}dynamic rope beyond {limit} positions", switch=True, unbounded=True)
    for name, part in _parts(config):
        yield from _found(part, f"{path}{name}.", positions)


def _dynamic(config: Mapping[str, Any], positions: int | None) -> int | None:
    """Where a rope begins to depend on the text's length: Llama's dynamic NTK, or the first Qwen's."""
    if "dynamic" in (config.get("rope_type"), config.get("type")):
        original = config.get("original_max_position_embeddings")
        return original if _is_length(original) else positions
    if config.get("use_dynamic_ntk"):
        length = config.get("seq_length")
        return length if _is_length(length) else positions
    return None


def _is_used(config: Mapping[str, Any], name: str) -> bool:
    """Whether a window is one of this model's: its switch is on, and one of its layers has it."""
    if config.get(f"use_{name}") is False:
        return False
    kinds = config.get("layer_types")
    if not isinstance(kinds, list) or not kinds or not re.search("attention|sliding", name):
        return True
    words = _CHUNKED if "chunk" in name else _SLIDING
    return any(word in str(kind) for kind in kinds for word in words)


def _is_length(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 1
