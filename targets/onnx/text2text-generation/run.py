"""Makes a text of another one, such as its translation, with the two graphs in onnx/: ONNX Runtime and the tokenizer.

pip install onnxruntime tokenizers
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
import onnxruntime
from onnxruntime import OrtValue
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent


def open_tokenizer() -> Tokenizer:
    if (HERE / "tokenizer.json").is_file():
        return Tokenizer.from_file(str(HERE / "tokenizer.json"))
    from transformers import AutoTokenizer  # pip install transformers: it reads the older forms of a tokenizer

    return AutoTokenizer.from_pretrained(HERE).backend_tokenizer


def setting(name: str) -> Any:
    """What generation_config.json says, or config.json where it says nothing."""
    for config in ("generation_config.json", "config.json"):
        file = HERE / config
        said = json.loads(file.read_text(encoding="utf-8")).get(name) if file.is_file() else None
        if said is not None:
            return said
    return None


def generate(
    encoder: onnxruntime.InferenceSession, decoder: onnxruntime.InferenceSession, source: list[int], start: int
) -> Iterator[int]:
    """The most likely first token, and the next after it, without end. The source is read once."""
    ids, mask = np.array([source], np.int64), np.ones((1, len(source)), np.int64)
    [states] = encoder.run(["last_hidden_state"], {"input_ids": ids, "attention_mask": mask})
    inputs = {value.name: value for value in decoder.get_inputs()}
    cache = {}
    for name in (name for name in inputs if name.startswith("past_key_values.")):
        _, heads, _, size = inputs[name].shape  # [batch, heads, tokens read so far, head size]
        cache[name] = OrtValue.ortvalue_from_numpy(np.zeros((1, heads, 0, size), np.float32))
    feeds = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
    fixed = {name: OrtValue.ortvalue_from_numpy(value) for name, value in feeds.items() if name in inputs}
    new = list(cache)  # of the source keys and values are made once, in the first step
    token = start
    while True:
        fixed["input_ids"] = OrtValue.ortvalue_from_numpy(np.array([[token]], np.int64))
        names = [name.replace("past_key_values", "present") for name in new]
        logits, *values = decoder.run_with_ort_values(["logits", *names], fixed | cache)
        cache |= dict(zip(new, values, strict=True))
        new = [name for name in cache if ".decoder." in name]
        token = int(logits.numpy()[0, -1].argmax())
        yield token


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="?", default="The house is wonderful.")
    parser.add_argument("-n", "--tokens", type=int, default=40, help="how many to make at most (%(default)s)")
    parser.add_argument("--start", type=int, help="the token that the answer begins with, such as a language's")
    parser.add_argument("--ids", action="store_true", help="print the new tokens' ids: to compare formats by them")
    asked = parser.parse_args()
    tokenizer = open_tokenizer()
    source = tokenizer.encode(asked.source).ids
    start = setting("decoder_start_token_id") if asked.start is None else asked.start
    if not source or start is None:
        parser.error("give some text" if start is not None else "the configuration names no start: give --start ID")
    encoder, decoder = (
        onnxruntime.InferenceSession(str(HERE / "onnx" / name), providers=["CPUExecutionProvider"])
        for name in ("encoder_model.onnx", "decoder_model_merged.onnx")
    )
    said = setting("eos_token_id")
    ends = set(said) if isinstance(said, list) else {said}
    new, began = list[int](), perf_counter()
    for token in generate(encoder, decoder, source, start):
        new.append(token)
        if token in ends or len(new) >= asked.tokens:
            break
    seconds = perf_counter() - began
    print(" ".join(map(str, new)) if asked.ids else tokenizer.decode(new, skip_special_tokens=True))
    print(f"{len(new)} tokens in {seconds:.2f} s, the source's {len(source)} included", file=sys.stderr)


if __name__ == "__main__":
    main()
