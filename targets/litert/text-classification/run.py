"""A text's labels, by model.tflite beside this file and LiteRT's interpreter. Prints them as a line of JSON.

pip install ai-edge-litert tokenizers
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent


def open_tokenizer() -> Any:
    from tokenizers import Tokenizer

    if (HERE / "tokenizer.json").is_file():
        return Tokenizer.from_file(str(HERE / "tokenizer.json"))
    from transformers import AutoTokenizer  # pip install transformers: it reads the older forms of a tokenizer

    return AutoTokenizer.from_pretrained(HERE).backend_tokenizer


def scores(config: dict[str, Any], logits: np.ndarray) -> dict[str, float]:
    """Each label's probability, the likeliest first; of a model that answers numbers, the numbers."""
    problem = config.get("problem_type") or ("regression" if len(logits) == 1 else "single_label_classification")
    if problem == "multi_label_classification":  # each label is a yes or no of its own
        answers = 1 / (1 + np.exp(-logits))
    elif problem == "regression" or len(logits) == 1:
        answers = logits
    else:
        powers = np.exp(logits - logits.max())
        answers = powers / powers.sum()
    names = config.get("id2label") or {}
    order = range(len(answers)) if answers is logits else np.argsort(-answers)
    return {names.get(str(at), f"LABEL_{at}"): float(answers[at]) for at in order}


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
    parser.add_argument("text", nargs="?", default="A sentence.")
    parser.add_argument("--pair", help="the second text, for a model of pairs: entailment, reranking")
    parser.add_argument("--threads", type=int, default=2, help="(%(default)s)")
    asked = parser.parse_args()
    config = json.loads((HERE / "config.json").read_text(encoding="utf-8"))
    tokenizer, model = open_tokenizer(), Model(asked.threads)
    tokenizer.no_padding()
    tokenizer.enable_truncation(model.longest)
    read = tokenizer.encode(asked.text, asked.pair)
    logits = model.answer(input_ids=read.ids, attention_mask=read.attention_mask, token_type_ids=read.type_ids)
    print(json.dumps(scores(config, logits.astype(np.float64)), ensure_ascii=False))


if __name__ == "__main__":
    main()
