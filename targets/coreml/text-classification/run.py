"""A text's labels, by model.mlpackage beside this file and Core ML itself: on a Mac. Prints them as a line of JSON.

pip install coremltools tokenizers
"""

from __future__ import annotations

import argparse
import json
import sys
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="?", default="A sentence.")
    parser.add_argument("--pair", help="the second text, for a model of pairs: entailment, reranking")
    asked = parser.parse_args()
    if sys.platform != "darwin":
        parser.error("Core ML runs on macOS alone; elsewhere `exporter bench` evaluates the program")
    import coremltools

    config = json.loads((HERE / "config.json").read_text(encoding="utf-8"))
    program = json.loads((HERE / "program.json").read_text(encoding="utf-8"))
    tokenizer = open_tokenizer()
    tokenizer.no_padding()
    tokenizer.enable_truncation(program["max_length"])
    read = tokenizer.encode(asked.text, asked.pair)
    feeds = {"input_ids": read.ids, "attention_mask": read.attention_mask, "token_type_ids": read.type_ids}
    model = coremltools.models.MLModel(str(HERE / "model.mlpackage"))
    answer = model.predict({name: np.array([feeds[name]], np.int32) for name in program["inputs"]})
    print(json.dumps(scores(config, answer["logits"][0].astype(np.float64)), ensure_ascii=False))


if __name__ == "__main__":
    main()
