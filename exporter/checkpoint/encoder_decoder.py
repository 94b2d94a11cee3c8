"""An encoder-decoder run by transformers: the source is read once, and its states are kept for what is asked after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.checkpoint.opened import TorchRunner
from exporter.form import SPECTROGRAM
from exporter.runner import Floats, Ids, Sample

if TYPE_CHECKING:
    from torch import Tensor


class TorchEncoderDecoder(TorchRunner):
    """A model for text2text-generation or speech, with transformers' own caches of both attentions."""

    def __init__(self, model: Any, task: str) -> None:
        super().__init__(model, task)
        self._states: Any = None

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        del self._states

    def encode(self, ids: Sample) -> Floats:
        self._states, self._cache = self._read(ids[None], np.ones((1, len(ids)), np.int64)), None
        states: Floats = self._states[0].float().cpu().numpy()
        return states

    def logits(self, ids: Ids) -> Floats:
        answers: Floats = self._floats(self._decode(ids, self._states, use_cache=False))[0]
        return answers

    def paired(self, sources: Sample, mask: Ids, ids: Ids) -> Floats:
        states = self._read(sources, mask)
        return self._floats(self._decode(ids, states, use_cache=False, attention_mask=self._there(mask)))

    def prefill(self, ids: Ids) -> Floats:
        self._cache = None
        return self._extend(ids)

    def step(self, token: int) -> Floats:
        return self._extend(np.array([token], np.int64))

    def _extend(self, ids: Ids) -> Floats:
        out = self._decode(ids, self._states, use_cache=True, past_key_values=self._cache)
        self._cache = out.past_key_values
        last: Floats = out.logits[0, -1].float().cpu().numpy()
        return last

    def _read(self, ids: Sample, mask: Ids) -> Any:
        with self._torch.inference_mode():
            encoder = self._model.get_encoder()
            if self._form.inputs == "spectrogram":  # in the model's own dtype, as transformers' clients feed it
                return encoder(**{SPECTROGRAM: self._there(ids).to(self._model.dtype)}).last_hidden_state
            return encoder(input_ids=self._there(ids), attention_mask=self._there(mask)).last_hidden_state

    def _decode(self, ids: Ids, states: Any, **more: Any) -> Any:
        """The answers to the decoder's [T] or [B, T] ids after a source's states."""
        from transformers.modeling_outputs import BaseModelOutput

        with self._torch.inference_mode():
            return self._call(
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                decoder_input_ids=self._there(np.atleast_2d(ids)),
                **more,
            )


def start_of(config: Mapping[str, Any]) -> int | None:
    """The token that a decoder begins with; None: each target's own last one, which mBART moves to its front.

    As the models' own prepare_decoder_input_ids_from_labels have it.
    """
    if config.get("model_type") == "mbart":
        return None
    start = config.get("decoder_start_token_id")
    return int(config["pad_token_id"] if start is None else start)


def before_each(targets: Tensor, config: Mapping[str, Any]) -> Tensor:
    """What a decoder is given where these [B, T] ids are asked for: the token before each, its start in front."""
    import torch

    start, last = start_of(config), targets[:, -1:]
    return torch.cat([last if start is None else torch.full_like(last, start), targets[:, :-1]], dim=1)
