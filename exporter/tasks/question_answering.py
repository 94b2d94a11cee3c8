"""question-answering: where in a text the answer to a question begins and ends (extractive, as SQuAD's).

KL of the places' probabilities, the mean of begin's and end's; and how often the best span is the reference's. Places
of the question count as little as they do to those who ask: only the text's, and the first token for "no answer".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from exporter.errors import JobError
from exporter.form import QUESTIONS
from exporter.job import MIN_TEXTS
from exporter.measure.arithmetic import Doubles, divergence, log_softmax, mean
from exporter.measure.quality import Passages
from exporter.measure.spans import best_span
from exporter.report.result import Figure
from exporter.runner import Floats, Ids
from exporter.tasks.task import Task, passages_of
from exporter.tasks.vectors import answering, comparing, of_tokens

_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def _read(tokenizer: Any, text: str, tokens: int, window: int, stride: int) -> Passages:
    """Of each paragraph with two sentences: its first one as the question, and all of it as the text. Raises JobError.

    No such question is asked in earnest, but where its answer would be is as much the model's as with any other.
    """
    asked = []
    for line in dict.fromkeys(one.strip() for one in text.splitlines()):
        question, *others = _SENTENCE.split(line, maxsplit=1)
        if others and any(map(str.isalnum, question)):
            asked.append((question, line))
    total, pairs = 0, []
    for question, line in asked:
        if total >= tokens:
            break
        pairs.append((question, line))
        total += min(len(tokenizer(question, line)["input_ids"]), window)
    if len(pairs) < MIN_TEXTS:
        raise JobError(
            f"the text has {len(pairs)} paragraphs of two sentences within {tokens} tokens, and question-answering is "
            f"measured on at least {MIN_TEXTS}: give --eval-text FILE with a paragraph on each line, or more "
            "--eval-tokens"
        )
    return pairs_of(tokenizer, pairs, window)[0]


def pairs_of(tokenizer: Any, pairs: list[tuple[str, str]], window: int) -> tuple[Passages, Doubles]:
    """Questions with their texts, which are cut at the window; what is compared are the text's places and the first.

    Also [S, 2], the characters of its text at which each of those places begins and ends; 0 and 0 of the first.
    """
    if not tokenizer.is_fast:
        raise JobError("its tokenizer cannot tell a question from its text: question-answering needs a tokenizer.json")
    pieces: list[Ids] = []
    segments: list[Ids] = []
    places: list[Ids] = []
    characters: list[Doubles] = []
    start = 0
    for question, text in pairs:
        words = tokenizer(question, add_special_tokens=False)["input_ids"]
        if len(words) > window // 2:  # so that the text has at least half of it
            question = tokenizer.decode(words[: window // 2])
        told = tokenizer(question, text, truncation="only_second", max_length=window, return_offsets_mapping=True)
        ids = np.array(told["input_ids"], np.int64)
        pieces.append(ids)
        segments.append(np.array(told.get("token_type_ids", np.zeros(len(ids))), np.int64))
        second = [0, *(at for at, which in enumerate(told.sequence_ids(0)) if which == 1)]
        places.append(start + np.array(second, np.int64))
        characters.append(np.array([(0, 0), *(told["offset_mapping"][at] for at in second[1:])], np.float64))
        start += len(ids)
    joined = np.concatenate(segments)
    apart = joined if joined.any() else None
    compared = np.concatenate(places)
    passages = passages_of(QUESTIONS, pieces, window, window, segments=apart, compared=compared)
    return passages, np.concatenate(characters)


def spans_of(passages: Passages, vectors: Floats) -> Iterator[Floats]:
    """[T, 2] of each passage: the logits at the places that are compared, in the order of the passages."""
    assert passages.compared is not None
    bounds = np.searchsorted(passages.compared, passages.offsets)
    for begin, end in pairwise(bounds):
        yield vectors[begin:end]


def _figures(passages: Passages, expected: Floats, got: Floats) -> dict[str, Figure]:
    kl, same = [], []
    for a, b in zip(spans_of(passages, expected), spans_of(passages, got), strict=True):
        p, q = log_softmax(a.T), log_softmax(b.T)
        kl.append(float((np.exp(p) * (p - q)).sum(-1, dtype=np.float64).mean()))
        same.append(best_span(a) == best_span(b))
    return {"kl": divergence(np.array(kl)), "top1": Figure(*mean(np.array(same, np.float64)))}


QUESTION_ANSWERING = Task(
    QUESTIONS, 384, _read, answering(of_tokens), comparing(of_tokens, _figures), {"kl": 0.0, "top1": 1.0},
    ("Where did Ada Lovelace live?", "Ada Lovelace lived in London."),
)  # fmt: skip
