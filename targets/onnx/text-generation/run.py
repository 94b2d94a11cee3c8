"""Continues a text with onnx/model.onnx beside this file: ONNX Runtime and the tokenizer, and nothing else.

pip install onnxruntime tokenizers
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import onnxruntime
from onnxruntime import OrtValue
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent


def open_tokenizer() -> Tokenizer:
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


def generate(session: onnxruntime.InferenceSession, ids: list[int]) -> Iterator[int]:
    """The most likely next token, and the next after it, without end. What was read stays in the KV cache."""
    inputs = {value.name: value for value in session.get_inputs()}
    past = [name for name in inputs if name.startswith("past_key_values.")]
    present = [name.replace("past_key_values", "present") for name in past]
    cache = []
    for name in past:  # [batch, heads, tokens read so far, head size]
        _, heads, _, size = inputs[name].shape
        kind = np.float16 if inputs[name].type == "tensor(float16)" else np.float32
        cache.append(OrtValue.ortvalue_from_numpy(np.zeros((1, heads, 0, size), kind)))
    read = 0
    while True:
        positions = np.arange(read, read + len(ids))
        read += len(ids)
        feeds = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, read)), "position_ids": positions[None]}
        values = {
            name: OrtValue.ortvalue_from_numpy(value.astype(np.int64))
            for name, value in feeds.items()
            if name in inputs
        }
        values |= dict(zip(past, cache, strict=True))
        logits, *cache = session.run_with_ort_values(["logits", *present], values)
        token = int(logits.numpy()[0, -1].argmax())
        yield token
        ids = [token]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default="Once upon a time")
    parser.add_argument("-n", "--tokens", type=int, default=40, help="how many to add (%(default)s)")
    parser.add_argument("--ids", action="store_true", help="print the new tokens' ids: to compare formats by them")
    asked = parser.parse_args()
    tokenizer = open_tokenizer()
    prompt = tokenizer.encode(asked.prompt).ids
    if not prompt:
        parser.error("the prompt has no token: give some text")
    has = onnxruntime.get_available_providers()
    providers = [one for one in ("CUDAExecutionProvider", "CPUExecutionProvider") if one in has]
    session = onnxruntime.InferenceSession(str(HERE / "onnx" / "model.onnx"), providers=providers)
    ends, new, began = end_tokens(), list[int](), perf_counter()
    for token in generate(session, prompt):
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
