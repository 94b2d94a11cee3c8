"""CLIP run by transformers: a tower that reads texts, one that reads pictures, and what their vectors make together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from exporter.checkpoint.opened import TorchRunner
from exporter.checkpoint.tokenizer import check_fit, read_tokenizer
from exporter.errors import JobError
from exporter.form import PIXELS, ZERO_SHOT
from exporter.runner import Floats, Ids, Sample

CLIP = "clip"  # its model_type
_HIGHEST = 2  # as a text's end: the highest number is it, whatever that is


class TorchTowers(TorchRunner):
    """A zero-shot-image-classification model. Vectors are as the towers' projections make them, of any length."""

    def __init__(self, model: Any, task: str) -> None:
        super().__init__(model, task)
        self._matched: dict[str, Any] = {}

    def match(self, ids: Ids, mask: Ids) -> None:
        self._matched = {"input_ids": self._there(ids), "attention_mask": self._there(mask)}

    def batch(self, ids: Sample, mask: Ids) -> Floats:
        with self._torch.inference_mode():
            return self._floats(self._call(**{PIXELS: self._there(ids).to(self._model.dtype)}, **self._matched))

    def texts(self, ids: Ids, mask: Ids) -> Floats:
        with self._torch.inference_mode():
            told = {"input_ids": self._there(ids), "attention_mask": self._there(mask)}
            return _vectors(self._model.get_text_features(**told))

    def pictures(self, pixels: Sample) -> Floats:
        with self._torch.inference_mode():
            return _vectors(self._model.get_image_features(self._there(pixels).to(self._model.dtype)))


def _vectors(out: Any) -> Floats:
    vectors: Floats = out.pooler_output.float().cpu().numpy()
    return vectors


def longest_text(config: Mapping[str, Any]) -> int:
    """Tokens of the longest text that CLIP has positions for, by its config.json."""
    return int((config.get("text_config") or {}).get("max_position_embeddings", 77))


def ids_of(tokenizer: Any, texts: Sequence[str], longest: int) -> list[Ids]:
    """Each text's ids with its special tokens, cut as a pipeline cuts it."""
    return [np.array(ids, np.int64) for ids in tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"]]


def check_towers(model: str, folder: Any, trust: bool, empty: Any) -> list[str]:
    """Notes on how the tokenizer fits the tower that reads texts. Raises JobError for a model that is no CLIP, or one
    that would not find where a text of this tokenizer ends."""
    kind = empty.config.model_type
    if kind != CLIP:
        raise JobError(f"exporter measures {ZERO_SHOT} of CLIP alone, and {model} is a {kind}")
    words = read_tokenizer(folder, trust)
    text = empty.config.text_config
    notes = check_fit(words, folder, int(empty.text_model.embeddings.token_embedding.weight.shape[0]))
    last = words("a")["input_ids"][-1]
    if text.eos_token_id == _HIGHEST:
        wrong = last != max(words.get_vocab().values())
        finds = "the highest number in it (eos_token_id 2 of text_config, as OpenAI's say)"
    else:
        wrong, finds = last != text.eos_token_id, f"the token {text.eos_token_id} (eos_token_id of text_config)"
    if wrong:
        raise JobError(
            f"{model} finds a text's end by {finds}, and its tokenizer ends texts with {last} of {len(words)}: all "
            "its texts would be read at another place than in training; correct config.json or the tokenizer"
        )
    return notes
