"""What a model that hears writes down: how many transcripts are the reference's, and how many words are wrong.

The word error rate is jiwer's: substitutions, deletions and insertions over the words that were said, of all sounds
together. What it rises by has the standard error of a bootstrap over the sounds, of both models at once.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

from exporter.measure.arithmetic import Doubles, mean
from exporter.measure.labels import TRANSCRIPTS, resampled
from exporter.report.result import Figure


def agreed(expected: Sequence[str], got: Sequence[str]) -> dict[str, Figure]:
    """Share of the sounds whose transcript is the reference's, letter for letter."""
    return {TRANSCRIPTS: Figure(*mean(np.array([a == b for a, b in zip(expected, got, strict=True)], np.float64)))}


def word_errors(said: Sequence[str], expected: Sequence[str], got: Sequence[str]) -> dict[str, Figure]:
    """The artifact's word error rate, and how far it is above the reference's."""
    words = _counts(said, said)[1]
    before, after = (_counts(said, texts)[0] for texts in (expected, got))
    rates, rises = [], []
    for weights in resampled(len(said)):
        total = np.maximum(weights @ words, 1)
        rates.append(weights @ after / total)
        rises.append(weights @ (after - before) / total)
    own, rise = (float(np.concatenate(one).std(ddof=1)) for one in (rates, rises))
    spoken = float(words.sum())
    return {
        "wer": Figure(float(after.sum()) / spoken, own),
        "wer_rise": Figure(float((after - before).sum()) / spoken, rise),
    }


def plain(text: str) -> str:
    """Words alone, without case and punctuation: as Radford et al. 2022 (appendix C) compare what Whisper writes."""
    letters = unicodedata.normalize("NFKC", text)
    kept = (one if unicodedata.category(one)[0] in "LMN" or one == "'" else " " for one in letters)
    return " ".join("".join(kept).casefold().split())


def _counts(said: Sequence[str], heard: Sequence[str]) -> tuple[Doubles, Doubles]:
    """Of each sound: words that are wrong, and words that were said."""
    import jiwer

    errors, words = [], []
    for right, text in zip(said, heard, strict=True):
        found = jiwer.process_words([" ".join(right.split())], [" ".join(text.split())])
        errors.append(found.substitutions + found.deletions + found.insertions)
        words.append(found.hits + found.substitutions + found.deletions)
    return np.array(errors, np.float64), np.array(words, np.float64)
