"""Continues a text with model.tflite beside this file, by LiteRT's interpreter.

pip install ai-edge-litert tokenizers
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
HIDDEN = -30000.0  # added to the scores of rows of the cache that are not seen


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


class Model:
    """prefill_N read a prompt's next tokens, N at most; decode reads one. The cache goes in and comes back."""

    def __init__(self, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(str(HERE / "model.tflite"), num_threads=threads)
        names = self._interpreter.get_signature_list()
        self._runners = {name: self._interpreter.get_signature_runner(name) for name in names}
        inputs = self._runners["decode"].get_input_details()
        self.longest = int(inputs["mask"]["shape"][-1])
        self._cache = {
            name: np.zeros(one["shape"], np.float32) for name, one in inputs.items() if name.startswith("kv_cache_")
        }

    def read(self, ids: list[int], past: int) -> np.ndarray:
        """[V]: the scores of what follows `ids`, which stand behind `past` others."""
        lengths = sorted(int(name.removeprefix("prefill_")) for name in self._runners if name != "decode")
        while len(ids) > 1 and past + lengths[0] <= self.longest:
            fitting = [length for length in lengths if past + length <= self.longest]
            length = next((one for one in fitting if one >= len(ids)), fitting[-1])
            last = self._call(f"prefill_{length}", ids[:length], length, past)
            past, ids = past + len(ids[:length]), ids[length:]
            if not ids:
                return last
        for token in ids:  # one token, or where the cache's end is nearer than the shortest prefill
            last = self._call("decode", [token], 1, past)
            past += 1
        return last

    def _call(self, name: str, ids: list[int], length: int, past: int) -> np.ndarray:
        tokens = np.zeros((1, length), np.int32)  # padded: what the padding writes is written over
        tokens[0, : len(ids)] = ids
        positions = np.arange(past, past + length, dtype=np.int32)
        seen = np.arange(self.longest)[None] <= positions[:, None]
        mask = np.where(seen, np.float32(0), np.float32(HIDDEN))[None, None]
        answer = self._runners[name](tokens=tokens, input_pos=positions, mask=mask, **self._cache)
        logits: np.ndarray = answer.pop("logits")
        self._cache = answer
        return logits[0, len(ids) - 1]


def generate(model: Model, ids: list[int]) -> Iterator[int]:
    """The most likely next token, and the next after it, as far as the cache goes."""
    past = 0
    while past + len(ids) <= model.longest:
        token = int(model.read(ids, past).argmax())
        yield token
        past, ids = past + len(ids), [token]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default="Once upon a time")
    parser.add_argument("-n", "--tokens", type=int, default=40, help="how many to add (%(default)s)")
    parser.add_argument("--ids", action="store_true", help="print the new tokens' ids: to compare formats by them")
    parser.add_argument("--threads", type=int, default=2, help="(%(default)s)")
    asked = parser.parse_args()
    tokenizer = open_tokenizer()
    prompt = tokenizer.encode(asked.prompt).ids
    if not prompt:
        parser.error("the prompt has no token: give some text")
    model = Model(asked.threads)
    if len(prompt) > model.longest:
        parser.error(f"the prompt has {len(prompt)} tokens, and the cache holds {model.longest}")
    ends, new, began = end_tokens(), list[int](), perf_counter()
    for token in generate(model, prompt):
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
