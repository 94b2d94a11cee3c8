"""What the model says of a text, by model.mlpackage beside this file and Core ML itself: on a Mac.

Prints it as a line of JSON; reading.py says what it means. pip install coremltools tokenizers
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from reading import Reading

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="+", help="a text; of a model that takes two, both: a question and its text")
    asked = parser.parse_args()
    if sys.platform != "darwin":
        parser.error("Core ML runs on macOS alone; elsewhere `exporter bench` evaluates the program")
    import coremltools

    program = json.loads((HERE / "program.json").read_text(encoding="utf-8"))
    reading = Reading(HERE)
    feeds = reading.feeds(*asked.text, limit=program["max_length"])
    model = coremltools.models.MLModel(str(HERE / "model.mlpackage"))
    answer = model.predict({name: np.array([feeds[name]], np.int32) for name in program["inputs"]})
    print(json.dumps(reading.answer(answer["logits"][0]), ensure_ascii=False))


if __name__ == "__main__":
    main()
