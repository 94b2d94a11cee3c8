"""Texts' vectors, by model.mlpackage beside this file and Core ML itself: on a Mac. Prints each as a line of JSON.

pip install coremltools tokenizers
"""

from __future__ import annotations

import argparse
import json
import sys
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="*", default=["A sentence.", "Another one."])
    asked = parser.parse_args()
    if sys.platform != "darwin":
        parser.error("Core ML runs on macOS alone; elsewhere `exporter bench` evaluates the program")
    import coremltools

    pooling = Pooling(HERE)
    tokenizer = open_tokenizer()
    tokenizer.no_padding()
    program = json.loads((HERE / "program.json").read_text(encoding="utf-8"))
    tokenizer.enable_truncation(min(pooling.limit or program["max_length"], program["max_length"]))
    model = coremltools.models.MLModel(str(HERE / "model.mlpackage"))
    for text in asked.text:
        read = tokenizer.encode(pooling.text(text))
        feeds = {"input_ids": read.ids, "attention_mask": read.attention_mask, "token_type_ids": read.type_ids}
        answer = model.predict({name: np.array([feeds[name]], np.int32) for name in program["inputs"]})
        print(json.dumps(pooling.vector(answer["last_hidden_state"][0]).tolist()))


if __name__ == "__main__":
    main()
