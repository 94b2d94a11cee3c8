"""What labelled texts say of a tagger and of a model that answers questions.

A tagger by its entities: precision, recall and F1 of whole ones, as the CoNLL shared tasks count them (seqeval's), and
the accuracy of the single words' tags. Answers by SQuAD's two figures (Rajpurkar et al. 2016): accuracy is its exact
match, F1 the mean over the questions of the words that are shared, both after its normalization. Errors of entities'
figures are a bootstrap's over the sentences, of both models at once; those of answers are of the paired differences.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from exporter.measure.arithmetic import Doubles, mean
from exporter.measure.labels import Labels, paired, resampled
from exporter.report.result import Figure
from exporter.runner import Floats

LONGEST = 30  # tokens of an answer, as in SQuAD's own scripts
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def tagged(labels: Labels, expected: Floats, got: Floats) -> dict[str, Figure]:
    """Of [S, C] logits at the words' first tokens: an artifact's figures, and how far each is below the reference's."""
    right, before, after = labels.values.astype(np.int64), expected.argmax(-1), got.argmax(-1)
    counts = [_entities(labels, right, found) for found in (before, after)]
    (one, two), whole = counts, np.ones((1, len(labels.bounds) - 1))
    own: dict[str, list[Doubles]] = {name: [] for name in _F1}
    drops: dict[str, list[Doubles]] = {name: [] for name in _F1}
    for weights in resampled(len(labels.bounds) - 1):
        a, b = _rates(one, weights), _rates(two, weights)
        for name in _F1:
            own[name].append(b[name])
            drops[name].append(a[name] - b[name])
    reference, artifact = _rates(one, whole), _rates(two, whole)
    figures = {"accuracy": Figure(*mean((right == after).astype(np.float64)))}
    figures |= {name: Figure(float(artifact[name][0]), _spread(own[name])) for name in _F1}
    figures["accuracy_drop"] = paired(right == before, right == after)
    drop = float(reference["f1"][0] - artifact["f1"][0])
    # Where no sentence differs a bootstrap finds no error: entities are never surer than single words.
    figures["f1_drop"] = Figure(drop, max(_spread(drops["f1"]), figures["accuracy_drop"].se or 0.0))
    return figures


_F1 = ("f1", "precision", "recall")


def _spread(values: Sequence[Doubles]) -> float:
    return float(np.concatenate(values).std(ddof=1))


def _entities(labels: Labels, right: np.ndarray, found: np.ndarray) -> Doubles:
    """[3, sentences]: entities that are right, that were found, and that there are."""
    from seqeval.metrics.sequence_labeling import get_entities

    counts = []
    for begin, end in pairwise(labels.bounds):
        true, said = (set(get_entities([labels.names[int(tag)] for tag in one[begin:end]])) for one in (right, found))
        counts.append((len(true & said), len(said), len(true)))
    result: Doubles = np.array(counts, np.float64).T
    return result


def _rates(counts: Doubles, weights: Doubles) -> Mapping[str, Doubles]:
    """Of [resamples, sentences]: micro averages, 0 where there is nothing to be right about."""
    hit, said, there = (weights @ one for one in counts)
    return {
        "f1": 2 * hit / np.maximum(said + there, 1),
        "precision": hit / np.maximum(said, 1),
        "recall": hit / np.maximum(there, 1),
    }


def answered(labels: Labels, expected: Floats, got: Floats) -> dict[str, Figure]:
    """Of [S, 2] logits at the places that count: the artifact's figures, and how far each is below the reference's."""
    scores = []
    for text, (begin, end) in zip(labels.texts, pairwise(labels.bounds), strict=True):
        context, answers = json.loads(text)
        row: list[float] = []
        for logits in (expected, got):
            said = _answer(context, labels.values[begin:end], logits[begin:end])
            row.append(max(float(normal(said) == normal(one)) for one in answers))
            row.append(max(shared(said, one) for one in answers))
        scores.append(row)
    exact, f1, exact_too, f1_too = np.array(scores, np.float64).T
    drop, error = mean(f1 - f1_too)
    exact_drop = paired(exact == 1, exact_too == 1)
    return {
        "accuracy": Figure(*mean(exact_too)),
        "f1": Figure(*mean(f1_too)),
        "accuracy_drop": exact_drop,
        "f1_drop": Figure(drop, max(error, exact_drop.se or 0.0)),  # as of entities
    }


def _answer(context: str, places: Doubles, logits: Floats) -> str:
    """The text of the best span; "" where the model says that there is no answer."""
    first, last = best_span(logits)
    return context[int(places[first, 0]) : int(places[last, 1])] if first else ""


def best_span(logits: Floats) -> tuple[int, int]:
    """(begin, end) of [T, 2] with the largest sum, of at most LONGEST tokens; (0, 0) is no answer."""
    begin, end = logits[:, :1].astype(np.float64), logits[None, :, 1]
    length = np.arange(len(logits)) - np.arange(len(logits))[:, None]
    allowed = (length >= 0) & (length < LONGEST)
    allowed[0, 1:] = False
    scores = np.where(allowed, begin + end, -np.inf)
    first, last = np.unravel_index(int(scores.argmax()), scores.shape)
    return int(first), int(last)


def normal(text: str) -> str:
    """Lower case, without punctuation, articles and more than one space: SQuAD's."""
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def shared(said: str, right: str) -> float:
    """F1 of the words of two answers; of no answer, whether both are none."""
    a, b = normal(said).split(), normal(right).split()
    if not a or not b:
        return float(a == b)
    both = sum((Counter(a) & Counter(b)).values())
    return 2 * both / (len(a) + len(b))
