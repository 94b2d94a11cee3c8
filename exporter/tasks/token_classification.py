"""token-classification: a class for each token, such as the parts of names.

KL of the classes' probabilities, and how often a token's class is the reference's; special tokens do not count.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from exporter.form import TOKENS
from exporter.measure.classification import compare_answers
from exporter.measure.quality import Passages
from exporter.report.result import Figure
from exporter.runner import Floats
from exporter.tasks.task import Task, ordinary, passages_of
from exporter.tasks.text_classification import short_texts
from exporter.tasks.vectors import answering, comparing, of_tokens
from exporter.types import SINGLE_LABEL


def _read(tokenizer: Any, text: str, tokens: int, window: int, stride: int) -> Passages:
    """Lines of a text, as a tagger's users have them: sentences and paragraphs."""
    pieces = short_texts(tokenizer, text, tokens, window)
    return passages_of(TOKENS, pieces, window, stride, compared=ordinary(tokenizer, np.concatenate(pieces)))


def _figures(passages: Passages, expected: Floats, got: Floats) -> dict[str, Figure]:
    return compare_answers(SINGLE_LABEL, expected, got)


TOKEN_CLASSIFICATION = Task(
    TOKENS, 128, _read, answering(of_tokens), comparing(of_tokens, _figures), {"kl": 0.0, "top1": 1.0},
    ("Ada Lovelace lived in London.",),
)  # fmt: skip
