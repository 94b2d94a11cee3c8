"""What the model says of a text, by model.tflite beside this file and LiteRT's interpreter.

Prints it as a line of JSON; reading.py says what it means. pip install ai-edge-litert tokenizers
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from reading import Reading

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="+", help="a text; of a model that takes two, both: a question and its text")
    parser.add_argument("--threads", type=int, default=2, help="(%(default)s)")
    asked = parser.parse_args()
    interpreter = Interpreter(str(HERE / "model.tflite"), num_threads=asked.threads)
    # encode_N reads a text of N tokens at most, padded.
    lengths = sorted(int(name.removeprefix("encode_")) for name in interpreter.get_signature_list())
    reading = Reading(HERE)
    feeds = reading.feeds(*asked.text, limit=lengths[-1])
    tokens = len(feeds["input_ids"])
    length = next(one for one in lengths if one >= tokens)
    runner = interpreter.get_signature_runner(f"encode_{length}")
    padded = {name: np.zeros((1, length), np.int32) for name in runner.get_input_details()}
    for name, row in padded.items():
        row[0, :tokens] = feeds[name]
    [logits] = runner(**padded).values()
    print(json.dumps(reading.answer(logits[0, :tokens]), ensure_ascii=False))


if __name__ == "__main__":
    main()
