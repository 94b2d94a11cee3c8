"""Writes down what is said in a sound, with the two graphs in onnx/: ONNX Runtime, the tokenizer and NumPy.

pip install onnxruntime tokenizers
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime import OrtValue
from sound import read_sound
from spectrogram import settings, spectrogram
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent


def setting(name: str) -> Any:
    """What generation_config.json says, or config.json where it says nothing."""
    for config in ("generation_config.json", "config.json"):
        file = HERE / config
        said = json.loads(file.read_text(encoding="utf-8")).get(name) if file.is_file() else None
        if said is not None:
            return said
    return None


def prompt(first: Any, language: str | None) -> list[int]:
    """The tokens behind the first, without timestamps. Where nobody names a language it is the most likely one by
    `first`, the answer [V] to the first token."""
    plain, known = setting("no_timestamps_token_id"), setting("lang_to_id") or {}
    forced = [token for _, token in sorted(setting("forced_decoder_ids") or [])]
    if not (setting("is_multilingual") if setting("is_multilingual") is not None else known):
        forced = forced or [plain]
    elif language or setting("task") or not forced:
        if language and f"<|{language}|>" not in known:
            raise SystemExit(f"no language {language}: there are {' '.join(name.strip('<|>') for name in known)}")
        forced = [known.get(f"<|{language}|>"), setting("task_to_id")[setting("task") or "transcribe"]]
    if forced[0] is None:
        forced[0] = max(known.values(), key=lambda token: first[token])
    return forced + [plain] * (plain is not None and plain not in forced)


def decoder(session: onnxruntime.InferenceSession, states: Any) -> Callable[[list[int]], Any]:
    """What answers [V] to more tokens after those that it was given before. The sound's keys are made once."""
    inputs = {value.name: value for value in session.get_inputs()}
    past = [name for name in inputs if name.startswith("past_key_values.")]
    cache = {}
    for name in past:
        _, heads, _, size = inputs[name].shape  # [batch, heads, tokens read so far, head size]
        cache[name] = OrtValue.ortvalue_from_numpy(np.zeros((1, heads, 0, size), np.float32))
    fixed = {"encoder_hidden_states": OrtValue.ortvalue_from_numpy(states)}

    def answer(tokens: list[int]) -> Any:
        fixed["input_ids"] = OrtValue.ortvalue_from_numpy(np.array([tokens], np.int64))
        empty = cache[past[-1]].shape()[2] == 0
        new = [name for name in past if empty or ".decoder." in name]
        names = [name.replace("past_key_values", "present") for name in new]
        logits, *values = session.run_with_ort_values(["logits", *names], fixed | cache)
        cache.update(zip(new, values, strict=True))
        return logits.numpy()[0, -1]

    return answer


def transcribe(
    encoder: onnxruntime.InferenceSession, session: onnxruntime.InferenceSession, features: Any, language: str | None
) -> Iterator[int]:
    """The most likely tokens of a transcript, one after another, up to its end, of those that it may have."""
    [states] = encoder.run(["last_hidden_state"], {"input_features": features})
    answer = decoder(session, states)
    said = setting("eos_token_id")
    ends = set(said) if isinstance(said, list) else {said}
    never, not_first = (setting(name) or [] for name in ("suppress_tokens", "begin_suppress_tokens"))
    start = setting("decoder_start_token_id")
    begun = prompt(answer([start]), language or setting("language"))
    logits = answer(begun)
    for number in range(setting("max_target_positions") - 1 - len(begun)):
        logits[[*never, *(not_first if number == 0 else [])]] = -np.inf
        token = int(logits.argmax())
        if token in ends:
            return
        yield token
        logits = answer([token])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "sound",
        nargs="?",
        type=Path,
        help="a WAV file, of which no more is heard than the model reads at once: 30 seconds; without, a made tone",
    )
    parser.add_argument("--language", help="of a model of several: its code, such as de (default: the sound's own)")
    parser.add_argument("--ids", action="store_true", help="print the tokens' ids: to compare formats by them")
    asked = parser.parse_args()
    told = settings(HERE)
    features = spectrogram(read_sound(asked.sound, told["sampling_rate"]), told)
    graphs = [
        onnxruntime.InferenceSession(str(HERE / "onnx" / name), providers=["CPUExecutionProvider"])
        for name in ("encoder_model.onnx", "decoder_model_merged.onnx")
    ]
    began = perf_counter()
    new = list(transcribe(*graphs, features, asked.language))
    seconds = perf_counter() - began
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    print(" ".join(map(str, new)) if asked.ids else tokenizer.decode(new, skip_special_tokens=True).strip())
    print(f"{len(new)} tokens in {seconds:.2f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
