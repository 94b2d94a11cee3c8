"""The tasks that are measured, and the form of each one's answers: what engines and comparisons need to know of a task.

What a task is measured on and how it is compared stands in a file of exporter/tasks/; its form stands here, for rooms
that know no tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

GENERATION = "text-generation"  # in the words of optimum's TasksManager
FILL_MASK = "fill-mask"
FEATURES = "feature-extraction"
CLASSIFICATION = "text-classification"
TOKENS = "token-classification"
QUESTIONS = "question-answering"
TEXT2TEXT = "text2text-generation"


@dataclass(frozen=True)
class Form:
    """What a model of a task answers: of each token (`per_token`) or once for a text.

    `answers`: logits of the vocabulary, logits of a few classes, or hidden states. `cached`: it is asked token by token
    too, with a KV cache. `outputs`: the names in transformers' output; more than one are an axis of the answer: of
    ("start_logits", "end_logits"), [B, T] each, it is [B, T, 2]. `unit`: what a row's figures are means over.
    `encodes`: an encoder reads a source first, of which a decoder is asked then (exporter.runner.EncoderDecoderRunner).
    """

    answers: Literal["vocabulary", "classes", "states"]
    per_token: bool = True
    cached: bool = False
    outputs: tuple[str, ...] = ("logits",)
    unit: Literal["token", "passage"] = "token"
    encodes: bool = False

    def width(self, config: Any) -> int:
        """The size of an answer's last axis, by a transformers configuration."""
        if len(self.outputs) > 1:
            return len(self.outputs)
        names = {"vocabulary": "vocab_size", "classes": "num_labels", "states": "hidden_size"}
        return int(getattr(config, names[self.answers]))


FORMS: Mapping[str, Form] = {
    GENERATION: Form("vocabulary", cached=True),
    FILL_MASK: Form("vocabulary"),
    FEATURES: Form("states", outputs=("last_hidden_state",), unit="passage"),
    CLASSIFICATION: Form("classes", per_token=False, unit="passage"),
    TOKENS: Form("classes"),
    QUESTIONS: Form("classes", outputs=("start_logits", "end_logits"), unit="passage"),
    TEXT2TEXT: Form("vocabulary", cached=True, encodes=True),
}
TASKS = tuple(FORMS)
