"""What the model says of a text or a picture, by model.tflite beside this file and LiteRT's interpreter.

Prints it as a line of JSON; reading.py says what it means. pip install ai-edge-litert, and
tokenizers or, for pictures, pillow and transformers
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
    parser.add_argument("text", nargs="+", help="a text, or a picture's file; of a model of two texts both")
    parser.add_argument("--threads", type=int, default=2, help="(%(default)s)")
    asked = parser.parse_args()
    interpreter = Interpreter(str(HERE / "model.tflite"), num_threads=asked.threads)
    reading, names = Reading(HERE), interpreter.get_signature_list()
    # encode_N reads a text of N tokens at most, padded; a picture has one size.
    lengths = sorted(int(name.removeprefix("encode_")) for name in names if name.startswith("encode_"))
    feeds = reading.feeds(*asked.text, limit=lengths[-1] if lengths else None)
    if not lengths:
        runner = interpreter.get_signature_runner()
        [answer] = runner(**{name: value[None] for name, value in feeds.items()}).values()
        print(json.dumps(reading.answer(answer[0]), ensure_ascii=False))
        return
    tokens = len(feeds["input_ids"])
    length = next(one for one in lengths if one >= tokens)
    runner = interpreter.get_signature_runner(f"encode_{length}")
    padded = {name: np.zeros((1, length), np.int32) for name in runner.get_input_details()}
    for name, row in padded.items():
        row[0, :tokens] = feeds[name]
    [answer] = runner(**padded).values()
    said = answer[0, :tokens] if answer.ndim == 3 else answer[0]  # of each token, or of the text
    print(json.dumps(reading.answer(said), ensure_ascii=False))


if __name__ == "__main__":
    main()
