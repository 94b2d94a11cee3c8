"""Continues a text with model.mlpackage beside this file, by Core ML itself: on a Mac.

pip install coremltools tokenizers
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
HIDDEN = -30000.0  # added to the scores of tokens that are not seen


def open_tokenizer() -> Any:
    from tokenizers import Tokenizer

    if (HERE / "tokenizer.json").is_file():
        return Tokenizer.from_file(str(HERE / "tokenizer.json"))
    from transformers import AutoTokenizer  # pip install transformers: it reads the older forms of a tokenizer

    return AutoTokenizer.from_pretrained(HERE).backend_tokenizer


def end_tokens() -> set[int]:
    """The tokens that end a text: generation_config.json's, or config.json's where it names none."""
    for name in ("generation_config.json", "config.json"):
        file = HERE / name
        said = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
        if said is not None:
            return set(said) if isinstance(said, list) else {said}
    return set()


def mask(new: int, past: int, window: int | None) -> np.ndarray:
    """[1, 1, new, past + new]: a token sees those up to itself, of a window only the last so many."""
    at, seen = np.arange(past, past + new)[:, None], np.arange(past + new)[None]
    hidden = (seen > at) | (seen <= at - (window or past + new + 1))
    return np.where(hidden, np.float32(HIDDEN), np.float32(0))[None, None]


def generate(model: Any, program: dict[str, Any], ids: list[int]) -> Iterator[int]:
    """The most likely next token, and the next after it, as far as the model goes."""
    state = model.make_state() if program["states"] else None
    past, window = 0, program["sliding_window"]
    while past + len(ids) <= program["max_length"]:
        new = len(ids)
        known = {
            "input_ids": np.array([ids], np.int32),
            "position_ids": np.arange(past, past + new, dtype=np.int32)[None],
            "causal_mask": mask(new, past, None),
            "sliding_mask": mask(new, past, window),
        }
        feeds = {name: known[name] for name in program["inputs"]}
        answer = model.predict(feeds, state) if state is not None else model.predict(feeds)
        token = int(answer["logits"][0, -1].argmax())
        yield token
        past, ids = (past + new, [token]) if state is not None else (0, [*ids, token])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default="Once upon a time")
    parser.add_argument("-n", "--tokens", type=int, default=40, help="how many to add (%(default)s)")
    parser.add_argument("--ids", action="store_true", help="print the new tokens' ids: to compare formats by them")
    asked = parser.parse_args()
    if sys.platform != "darwin":
        parser.error("Core ML runs on macOS alone; elsewhere `exporter bench` evaluates the program")
    import coremltools

    tokenizer = open_tokenizer()
    prompt = tokenizer.encode(asked.prompt).ids
    if not prompt:
        parser.error("the prompt has no token: give some text")
    program = json.loads((HERE / "program.json").read_text(encoding="utf-8"))
    model = coremltools.models.MLModel(str(HERE / "model.mlpackage"))
    ends, new, began = end_tokens(), list[int](), perf_counter()
    for token in generate(model, program, prompt):
        new.append(token)
        if token in ends or len(new) >= asked.tokens:
            break
    seconds = perf_counter() - began
    # Decoded with the prompt: some tokenizers write a word's space only where something stands before it.
    whole, before = (tokenizer.decode(ids, skip_special_tokens=True) for ids in ([*prompt, *new], prompt))
    print(" ".join(map(str, new)) if asked.ids else whole.removeprefix(before))
    print(f"{len(new)} tokens in {seconds:.2f} s, the prompt's {len(prompt)} included", file=sys.stderr)


if __name__ == "__main__":
    main()
