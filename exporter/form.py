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
IMAGES = "image-classification"
IMAGE_FEATURES = "image-feature-extraction"
SPEECH = "automatic-speech-recognition"  # by an encoder-decoder, as Whisper is
SPEECH_CTC = "automatic-speech-recognition-ctc"  # optimum has one name for it and for what generates a transcript
ZERO_SHOT = "zero-shot-image-classification"

PIXELS = "pixel_values"  # what a model calls the pictures that it is fed
SAMPLES = "input_values"  # and what it calls the samples of a sound
SPECTROGRAM = "input_features"  # and its spectrogram
FED = {"pixels": PIXELS, "waveform": SAMPLES, "spectrogram": SPECTROGRAM}  # by a form's inputs that are no tokens


@dataclass(frozen=True)
class Form:
    """What a model of a task reads and answers: of each token of a text (`per_token`), or once for a sample.

    `inputs`: token ids of a text, or a picture's pixel values float32 [C, H, W], as the checkpoint's processor makes
    them, or of a sound its samples float32 [T], as the feature extractor scales them, or its spectrogram [mel, frames].
    What is measured on is one array, and its first axis is what one is told apart from another by: tokens, or a
    picture's channels, or a spectrogram's mel bands. A model that hears may answer once for some hundreds of a sound's
    samples, a frame.

    `answers`: logits of the vocabulary, logits of a few classes, or hidden states. `cached`: it is asked token by token
    too, with a KV cache. `outputs`: the names in transformers' output; more than one are an axis of the answer: of
    ("start_logits", "end_logits"), [B, T] each, it is [B, T, 2]. `unit`: what a row's figures are means over.
    `encodes`: an encoder reads a source first, of which a decoder is asked then (exporter.runner.EncoderDecoderRunner).
    `matches`: its classes are texts that are given, which another tower reads (exporter.runner.MatchingRunner).
    """

    answers: Literal["vocabulary", "classes", "states"]
    per_token: bool = True
    cached: bool = False
    outputs: tuple[str, ...] = ("logits",)
    unit: Literal["token", "passage", "picture", "frame"] = "token"
    inputs: Literal["text", "pixels", "waveform", "spectrogram"] = "text"
    encodes: bool = False
    matches: bool = False

    @property
    def classifier(self) -> bool:
        """Whether a sample has one answer: its classes, or the numbers that it is given."""
        return self.answers == "classes" and not self.per_token

    def width(self, config: Any) -> int:
        """The size of an answer's last axis, by a transformers configuration."""
        if len(self.outputs) > 1:
            return len(self.outputs)
        if self.unit == "frame":  # its few classes are the characters that transcripts are made of
            return int(config.vocab_size)
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
    SPEECH_CTC: Form("classes", unit="frame", inputs="waveform"),
    SPEECH: Form("vocabulary", cached=True, encodes=True, inputs="spectrogram"),
    IMAGES: Form("classes", per_token=False, unit="picture", inputs="pixels"),
    IMAGE_FEATURES: Form("states", per_token=False, outputs=("last_hidden_state",), unit="picture", inputs="pixels"),
    ZERO_SHOT: Form(
        "classes", per_token=False, outputs=("logits_per_image",), unit="picture", inputs="pixels", matches=True
    ),
}
TASKS = tuple(FORMS)

# By PEFT's names of what an adapter was trained for.
TASK_OF_ADAPTER = {
    "CAUSAL_LM": GENERATION,
    "FEATURE_EXTRACTION": FEATURES,
    "SEQ_CLS": CLASSIFICATION,
    "TOKEN_CLS": TOKENS,
    "QUESTION_ANS": QUESTIONS,
    "SEQ_2_SEQ_LM": TEXT2TEXT,
}
