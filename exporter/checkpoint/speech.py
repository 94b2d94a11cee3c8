"""How a model of speech with a decoder is asked: Whisper's spectrograms, the tokens that a transcript begins with, and
those that it may not have, as its generation_config.json says them and transformers' `generate` reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from exporter.checkpoint.extractor import read_extractor
from exporter.errors import JobError
from exporter.runner import Floats

_FAMILY = "whisper"


@dataclass(frozen=True)
class Transcribing:
    """How a transcript is made, greedily and without timestamps.

    `start` is the decoder's first token, and `prompt` are those behind it; the first of them is the sound's language,
    which the model itself finds among `languages` where these are not empty. `never`: tokens that no transcript has;
    `not_first`: that none begins with. `stop` ends it, as do `longest` tokens, the prompt's included.
    """

    start: int
    prompt: tuple[int, ...]
    languages: tuple[int, ...]
    never: tuple[int, ...]
    not_first: tuple[int, ...]
    stop: tuple[int, ...]
    longest: int

    @classmethod
    def load(cls, told: Mapping[str, Any]) -> Self:
        """One that went through JSON."""
        values: dict[str, Any] = {key: tuple(it) if isinstance(it, list) else it for key, it in told.items()}
        return cls(**values)

    def choose(self, logits: Floats, first: bool) -> int:
        """The most likely token of [V] that may stand here."""
        allowed = logits.copy()
        allowed[[*self.never, *(self.not_first if first else ())]] = -np.inf
        return int(allowed.argmax())

    def language(self, logits: Floats) -> int:
        """The most likely language, by the answer [V] to the first token."""
        return self.languages[int(logits[list(self.languages)].argmax())]


def check_speech(model: str, folder: Path, config: Any, trust: bool) -> None:
    """Raises JobError for a model that is no Whisper, or whose folder does not say how one is asked."""
    if config.model_type != _FAMILY:
        raise JobError(
            f"{model} is a {config.model_type}, and of models that hear and have a decoder Whisper's are measured"
        )
    transcribing(folder)
    extractor = read_extractor(folder, trust)
    made = tuple(getattr(extractor, name, None) for name in ("feature_size", "nb_max_frames"))
    if made != spectrogram_of(config):
        told, wanted = (" x ".join(map(str, one)) for one in (made, spectrogram_of(config)))
        raise JobError(
            f"the feature extractor of {model} makes spectrograms of {told}, and its config.json wants {wanted}: one "
            "of the two is another model's"
        )


def spectrogram_of(config: Any) -> tuple[int, int]:
    """[mel, frames] of every sound, by a transformers configuration: its encoder halves the frames."""
    return int(config.num_mel_bins), 2 * int(config.max_source_positions)


def transcribing(folder: Path) -> Transcribing:
    """What a checkpoint's or an artifact's folder says. Raises JobError where it does not say how one begins."""
    said = _read(folder)
    stop, start = _ids(said.get("eos_token_id")), said.get("decoder_start_token_id")
    prompt, languages = _prompt(folder, said)
    if start is None or not stop:
        raise _unsaid(folder, "decoder_start_token_id" if start is None else "eos_token_id")
    never, not_first = (_ids(said.get(name)) for name in ("suppress_tokens", "begin_suppress_tokens"))
    return Transcribing(int(start), prompt, languages, never, not_first, stop, int(said["max_target_positions"]))


def _prompt(folder: Path, said: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens behind the first one; and the languages, where the sound decides which is the first of them."""
    plain = said.get("no_timestamps_token_id")
    forced = [token for _, token in sorted(said.get("forced_decoder_ids") or [])]
    language, task = said.get("language"), said.get("task")
    if plain is None and not forced:
        raise _unsaid(folder, "no_timestamps_token_id")
    if not said.get("is_multilingual", bool(said.get("lang_to_id"))):
        forced = forced or [plain]
    elif language is not None or task is not None or not forced:
        known, tasks = said.get("lang_to_id") or {}, said.get("task_to_id") or {}
        if not known or (task or "transcribe") not in tasks:
            raise _unsaid(folder, "lang_to_id" if not known else "task_to_id")
        forced = [_language(folder, known, language), tasks[task or "transcribe"]]
    languages = _ids(list((said.get("lang_to_id") or {}).values())) if forced[0] is None else ()
    if forced[0] is None and not languages:
        raise _unsaid(folder, "lang_to_id")
    if plain is not None and plain not in forced:
        forced.append(plain)
    return tuple(-1 if token is None else int(token) for token in forced), languages


def _language(folder: Path, known: Mapping[str, int], language: str | None) -> int | None:
    if language is None:
        return None
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    name = language.lower()
    for token in (name, f"<|{TO_LANGUAGE_CODE.get(name, name)}|>"):
        if token in known:
            return int(known[token])
    raise JobError(f"{folder / 'generation_config.json'}: no language {language!r} is in its lang_to_id")


def _unsaid(folder: Path, name: str) -> JobError:
    return JobError(
        f"{folder / 'generation_config.json'} does not say how a transcript begins and ends ({name}): copy the file of "
        "the Whisper that this model was trained from"
    )


def _ids(value: int | Sequence[int] | None) -> tuple[int, ...]:
    values = value if isinstance(value, Sequence) else [value]
    return tuple(int(one) for one in values if one is not None)


def _read(folder: Path) -> dict[str, Any]:
    """Of both files what is not null: generation_config.json goes before config.json."""
    said: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            told = json.loads((folder / name).read_text(encoding="utf-8"))
            said |= {key: value for key, value in told.items() if value is not None}
    return said
