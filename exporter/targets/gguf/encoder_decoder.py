"""T5 in llama.cpp: llama_encode reads a source, and llama_decode makes a text of it, in one context.

The decoder's cache is of its own tokens; the source's keys and values llama.cpp makes anew in each step, of the states
that the context keeps. Sources are read one by one: a batch of padded ones is what llama.cpp has no form for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from exporter.errors import BuildError
from exporter.form import FEATURES, FORMS, GENERATION, TEXT2TEXT
from exporter.runner import Floats, Ids
from exporter.targets.gguf import log
from exporter.targets.gguf.runner import GgufDecoder, GgufEncoder
from exporter.targets.gguf.types import FLOATS, demands_matrix

_KNOWN = ("t5", "mt5", "umt5")  # model types that llama.cpp's converter and its T5 take
_DISTANCE = 128  # from which on relative positions are all alike
_BATCH = 512  # tokens of a source that are read at once, which must be all of it


class GgufEncoderDecoder(GgufDecoder):
    """A text2text-generation model."""

    _room = 0  # tokens of the longest source, or text, that the context takes

    def encode(self, ids: Ids) -> Floats:
        self._reserve(len(ids))
        api, batch, count = self._api, self._batch, len(ids)
        self._empty()
        self._fill(ids, every=True)
        api.llama_set_embeddings(self._context, True)
        status = api.llama_encode(self._context, batch)
        api.llama_set_embeddings(self._context, False)
        if status != 0:
            raise BuildError(f"llama_encode failed with status {status}: {log.last_errors()}")
        columns = int(api.llama_model_n_embd(self._model))
        states = np.ctypeslib.as_array(api.llama_get_embeddings(self._context), (count, columns))
        return states.copy()

    def paired(self, sources: Ids, mask: Ids, ids: Ids) -> Floats:
        answers = []
        for source, length, row in zip(sources, mask.sum(axis=1), ids, strict=True):
            self.encode(source[:length])
            answers.append(self.logits(row))
        return np.stack(answers)

    def _restart(self, tokens: int) -> None:
        if tokens > self._room or not self._room:  # a new context would have no source
            raise BuildError(f"a text of {tokens} tokens needs a source that was read with room for it")
        self._empty()

    def _reserve(self, tokens: int) -> None:
        """A context whose batch holds a source of so many tokens; a longer one has room for as long a text."""
        room = max(2 * _BATCH, tokens)
        if self._context is None or room > self._room:
            self._open_context(2 * room, room)
            self._room = room


def kind_of(task: str) -> type[GgufDecoder] | type[GgufEncoder]:
    """What runs a file for a task."""
    if FORMS[task].encodes:
        return GgufEncoderDecoder
    return GgufDecoder if task == GENERATION else GgufEncoder


def refused(config: Mapping[str, Any], task: str, precision: str) -> str | None:
    """Why a model is not for llama.cpp, or None."""
    if task not in (GENERATION, FEATURES, TEXT2TEXT):
        return "llama.cpp has programs for text generation and embeddings alone"
    if not config.get("is_encoder_decoder"):
        return None
    kind = config.get("model_type")
    if task != TEXT2TEXT or kind not in _KNOWN:
        return (
            f"of encoder-decoders llama.cpp runs {', '.join(_KNOWN)} for {TEXT2TEXT}, and this is a {kind} for {task}"
        )
    # Both were measured on random models: KL 13 nats of a tied head, an encoder's cosine of 0.9996 at another distance.
    tied = config.get("tie_word_embeddings", kind == "t5")
    if config.get("scale_decoder_outputs", tied) and kind != "mt5":
        return (
            "llama.cpp leaves out what T5 divides its tied head's input by; models of version 1.1, as FLAN's, have none"
        )
    if config.get("relative_attention_max_distance", _DISTANCE) != _DISTANCE:
        return f"llama.cpp knows no relative_attention_max_distance but {_DISTANCE}"
    if precision not in FLOATS and demands_matrix(precision, ()):
        return "its type demands an importance matrix, and none is made of encoder-decoders yet"
    return None
