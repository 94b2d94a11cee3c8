"""Texts' vectors, by model.tflite beside this file and LiteRT's interpreter. Prints each as a line of JSON.

pip install ai-edge-litert tokenizers
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from pooling import Pooling

HERE = Path(__file__).resolve().parent


def open_tokenizer() -> Any:
    from tokenizers import Tokenizer

    if (HERE / "tokenizer.json").is_file():
        return Tokenizer.from_file(str(HERE / "tokenizer.json"))
    from transformers import AutoTokenizer  # pip install transformers: it reads the older forms of a tokenizer

    return AutoTokenizer.from_pretrained(HERE).backend_tokenizer


class Model:
    """encode_N reads a text of N tokens at most, padded."""

    def __init__(self, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(str(HERE / "model.tflite"), num_threads=threads)
        names = self._interpreter.get_signature_list()
        self._runners = {
            int(name.removeprefix("encode_")): self._interpreter.get_signature_runner(name) for name in names
        }
        self.longest = max(self._runners)

    def answer(self, **feeds: list[int]) -> np.ndarray:
        """The model's output on a text's ids, mask and, where it takes them, token types."""
        tokens = len(feeds["input_ids"])
        length = min(one for one in self._runners if one >= tokens)
        runner = self._runners[length]
        padded = {name: np.zeros((1, length), np.int32) for name in runner.get_input_details()}
        for name, row in padded.items():
            row[0, :tokens] = feeds[name]
        [answer] = runner(**padded).values()
        found: np.ndarray = answer[0]
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="*", default=["A sentence.", "Another one."])
    parser.add_argument("--threads", type=int, default=2, help="(%(default)s)")
    asked = parser.parse_args()
    pooling, tokenizer, model = Pooling(HERE), open_tokenizer(), Model(asked.threads)
    tokenizer.no_padding()
    tokenizer.enable_truncation(min(pooling.limit or model.longest, model.longest))
    for text in asked.text:
        read = tokenizer.encode(pooling.text(text))
        states = model.answer(input_ids=read.ids, attention_mask=read.attention_mask, token_type_ids=read.type_ids)
        print(json.dumps(pooling.vector(states[: len(read.ids)]).tolist()))


if __name__ == "__main__":
    main()
