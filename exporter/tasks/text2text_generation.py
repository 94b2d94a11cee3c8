"""text2text-generation: an encoder reads a source, and a decoder makes a text of it.

Measured on pairs: the targets' perplexity given their sources (teacher forcing: each token after those before it), KL
and top-1 of the same tokens as of text generation, and the cosine of the encoder's mean-pooled states.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from exporter.errors import JobError
from exporter.form import TEXT2TEXT
from exporter.job import MIN_TEXTS
from exporter.measure.quality import Passages
from exporter.runner import Ids
from exporter.tasks.task import Task, passages_of
from exporter.tasks.teacher_forcing import answer, compare
from exporter.tasks.vocabulary import OF_ITSELF

_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_EMPTY_LINE = re.compile(r"\n\s*\n")


def _read(tokenizer: Any, text: str, tokens: int, window: int, stride: int) -> Passages:
    """Of each paragraph its sentences in pairs, the first as the source and the next as the target. Raises JobError.

    No model was trained to make the next sentence of one, but how an artifact differs from its reference shows there
    as anywhere. A paragraph ends at an empty line, or in a text that has none at each line's end.
    """
    pairs: list[tuple[str, str]] = []
    total = 0
    for source, target in _neighbours(text):
        if total >= tokens:
            break
        pairs.append((source, target))
        total += min(len(tokenizer(text_target=target)["input_ids"]), window)
    if len(pairs) < MIN_TEXTS:
        raise JobError(
            f"the text has {len(pairs)} pairs of sentences within {tokens} tokens, and {TEXT2TEXT} is measured on at "
            f"least {MIN_TEXTS}: give --eval-data FILE with sources and targets, a longer --eval-text, or more "
            "--eval-tokens"
        )
    return pairs_of(tokenizer, pairs, window)[0]


def _neighbours(text: str) -> Iterator[tuple[str, str]]:
    paragraphs = _EMPTY_LINE.split(text)
    if len(paragraphs) == 1:
        paragraphs = text.splitlines()
    told = set()
    for paragraph in paragraphs:
        sentences = [" ".join(one.split()) for one in _SENTENCE.split(paragraph) if any(map(str.isalnum, one))]
        for pair in zip(sentences[0::2], sentences[1::2], strict=False):
            if pair not in told:
                yield pair
            told.add(pair)


def pairs_of(tokenizer: Any, pairs: Sequence[tuple[str, str]], window: int) -> tuple[Passages, int]:
    """Sources and targets as the tokenizer writes them in training, and how many texts were cut at the window."""
    sources: list[Ids] = []
    targets: list[Ids] = []
    cut = 0
    for source, target in pairs:
        for into, asked in ((sources, {"text": source}), (targets, {"text_target": target})):
            whole = tokenizer(**asked)["input_ids"]
            if len(whole) > window:
                cut += 1
                whole = tokenizer(**asked, truncation=True, max_length=window)["input_ids"]
            into.append(np.array(whole, np.int64))
    offsets = np.cumsum([0, *map(len, sources)]).astype(np.int64)
    told = {"sources": np.concatenate(sources), "source_offsets": offsets}
    return passages_of(TEXT2TEXT, targets, window, window, **told), cut


TEXT2TEXT_GENERATION = Task(
    TEXT2TEXT, 128, _read, answer, compare, {**OF_ITSELF, "cosine": 1.0}, ("The house is wonderful.",)
)
