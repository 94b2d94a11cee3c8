"""Perplexity's other forms: per word, byte or character of the text, and per sequence.

A perplexity per token depends on the tokenizer: one that cuts a text into fewer tokens has more to say with each. The
same negative log-likelihood over what every tokenizer leaves as it is, the text's bytes, characters or words, can be
compared: exp(sum over the scored tokens / how many of them those tokens cover). So lm-evaluation-harness has
word_perplexity, byte_perplexity and bits_per_byte, where a word is what stands between white space; bits per byte are
those of The Pile (arXiv:2101.00027), too.

What is counted is the text of exactly the tokens that were scored: neither the first token of a window, nor what the
evaluation left out, nor a special token that the tokenizer wrote. Of a word or a character that is scored in part, the
part counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.measure.arithmetic import LARGEST, Doubles, exponential, mean
from exporter.report.forms import SEQUENCE, UNITS
from exporter.report.result import Figure
from exporter.runner import Ids

PERPLEXITY = "perplexity.npz"  # beside the reference's answers, where a form was asked for
_NO_NUMBER = "beyond the largest number"


@dataclass(frozen=True)
class Forms:
    """What the scored tokens cover of the text: for each unit that was asked for, how much of it is each token's [S].

    `sequences` [S] is the window that scored each token, where perplexity per sequence was asked for; None: it was not.
    """

    counts: Mapping[str, Doubles]
    sequences: Ids | None

    def save(self, path: Path) -> None:
        arrays: dict[str, Any] = dict(self.counts)
        if self.sequences is not None:
            arrays[SEQUENCE] = self.sequences
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> Forms:
        with np.load(path, allow_pickle=False) as data:
            counts = {name: data[name] for name in UNITS if name in data}
            return cls(counts, data.get(SEQUENCE))

    def figures(self, nll: Doubles) -> dict[str, Figure]:
        """Of each scored token's negative log-likelihood [S], in nats: ppl_word and its like, and bits_per_byte.

        A perplexity that no number can hold, as of a text without white space per word, has none, and says so.
        """
        found: dict[str, Figure] = {}
        for unit, counts in self.counts.items():
            rate, se = _rate(nll, counts)
            found[f"ppl_{unit}"] = _told(rate, se, unit)
            if unit == "byte" and math.isfinite(rate):
                found["bits_per_byte"] = Figure(rate / math.log(2), se / math.log(2))
        if self.sequences is not None:
            found[f"ppl_{SEQUENCE}"] = _per_sequence(nll, self.sequences)
        return found

    def about(self) -> dict[str, Any]:
        """How much of each unit the scored tokens cover, for the report; which are the numbers that are divided by."""
        told: dict[str, Any] = {f"{unit}s": round(float(counts.sum()), 6) for unit, counts in self.counts.items()}
        if self.sequences is not None:
            told[f"{SEQUENCE}s"] = len(np.unique(self.sequences))
        return told


def _rate(nll: Doubles, counts: Doubles) -> tuple[float, float]:
    """Nats for each unit, and the standard error of that ratio to first order: of nll - rate * count over tokens.

    Both are sampled with the token, and a long one has more of both. With a count of one each it is the mean's.
    """
    total = float(counts.sum())
    rate = float(nll.sum()) / total if total > 0 else math.nan
    if not math.isfinite(rate):
        return rate, 0.0
    _, spread = mean(nll - rate * counts)
    return rate, spread * len(nll) / total


def _told(rate: float, se: float, unit: str) -> Figure:
    if math.isnan(rate):
        return Figure(detail="the scored tokens cover no text")
    return exponential(rate, se) if rate < LARGEST else Figure(detail=f"{_NO_NUMBER}: {rate:.4g} nats per {unit}")


def _per_sequence(nll: Doubles, sequences: Ids) -> Figure:
    """The mean over the sequences of each one's own perplexity, and that mean's standard error."""
    _, place = np.unique(sequences, return_inverse=True)
    means = np.bincount(place, nll) / np.bincount(place)
    if (worst := float(means.max())) >= LARGEST:
        return Figure(detail=f"{_NO_NUMBER}: {worst:.4g} nats per token of its worst sequence")
    return Figure(*mean(np.exp(means)))


def cover(text: str, spans: Sequence[tuple[int, int]], units: Sequence[str]) -> dict[str, Doubles]:
    """How much of a text each of its tokens covers [N], by unit; `spans` are the characters [begin, end) of each.

    A token covers what follows the one before it up to its own end: the space that some tokenizers leave out of a
    word's span is the word's, and what is no text (a span without characters) covers nothing. Tokens that end within
    one character share its bytes.
    """
    characters = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (characters >= 0x80) + (characters >= 0x800) + (characters >= 0x10000)
    begins = np.concatenate([[0], np.cumsum(sizes)])  # each character's first byte, and the end
    ends = _byte_ends(spans, sizes, begins)
    return {unit: np.diff(_before(unit, text, sizes)[ends], prepend=0.0) for unit in units}


def _byte_ends(spans: Sequence[tuple[int, int]], sizes: Any, begins: Any) -> Ids:
    """The byte of the text at which each token ends [N]; never before the one before it."""
    told = np.array(spans, np.int64).reshape(-1, 2)
    last = np.maximum.accumulate(told[:, 1])
    ends = begins[last]
    own = np.flatnonzero((told[:, 0] < told[:, 1]) & (told[:, 1] == last))
    # Tokens in a row that end with one character, such as 🙂 as four of a byte each, have a part of its bytes each.
    _, place, count = np.unique(last[own], return_inverse=True, return_counts=True)
    rank = np.arange(len(own)) - (np.cumsum(count) - count)[place] + 1
    many, shared = own[count[place] > 1], count[place] > 1
    final = last[many] - 1
    ends[many] = begins[final] + sizes[final] * rank[shared] // count[place][shared]
    found: Ids = np.maximum.accumulate(ends)
    return found


def _before(unit: str, text: str, sizes: Any) -> Doubles:
    """How much of a unit stands before each byte of a text [bytes + 1]; parts of one are shares of its bytes."""
    if unit == "byte":
        return np.arange(int(sizes.sum()) + 1, dtype=np.float64)
    shares = np.repeat(1.0 / sizes, sizes) if unit == "character" else _word_shares(text, sizes)
    return np.concatenate([[0.0], np.cumsum(shares)])


def _word_shares(text: str, sizes: Any) -> Doubles:
    """For each byte the share that it is of its word: between white space, as str.split has it."""
    inside = np.repeat(np.array([not one.isspace() for one in text], bool), sizes)
    starts = inside & ~np.concatenate([[False], inside[:-1]])
    number = np.cumsum(starts) - 1
    lengths = np.bincount(number[inside]) if inside.any() else np.ones(1)
    return np.where(inside, 1.0 / lengths[np.maximum(number, 0)], 0.0)
