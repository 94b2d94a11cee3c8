"""Texts' vectors, by onnx/model.onnx beside this file: ONNX Runtime and the tokenizer. Prints each as a line of JSON.

pip install onnxruntime tokenizers
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from pooling import Pooling
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent


def open_tokenizer() -> Tokenizer:
    if (HERE / "tokenizer.json").is_file():
        return Tokenizer.from_file(str(HERE / "tokenizer.json"))
    from transformers import AutoTokenizer  # pip install transformers: it reads the older forms of a tokenizer

    return AutoTokenizer.from_pretrained(HERE).backend_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="*", default=["A sentence.", "Another one."])
    asked = parser.parse_args()
    pooling = Pooling(HERE)
    tokenizer = open_tokenizer()
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if pooling.limit is not None:
        tokenizer.enable_truncation(pooling.limit)
    has = onnxruntime.get_available_providers()
    providers = [one for one in ("CUDAExecutionProvider", "CPUExecutionProvider") if one in has]
    session = onnxruntime.InferenceSession(str(HERE / "onnx" / "model.onnx"), providers=providers)
    inputs = {value.name for value in session.get_inputs()}
    for text in asked.text:
        read = tokenizer.encode(pooling.text(text))
        feeds = {"input_ids": read.ids, "attention_mask": read.attention_mask, "token_type_ids": read.type_ids}
        states = session.run(None, {name: np.array([feeds[name]], np.int64) for name in feeds if name in inputs})[0][0]
        print(json.dumps(pooling.vector(states).tolist()))


if __name__ == "__main__":
    main()
