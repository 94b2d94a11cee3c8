"""What the model says of a text or a picture, by model.mlpackage beside this file and Core ML itself: on a Mac.

Prints it as a line of JSON; reading.py says what it means. pip install coremltools, and tokenizers
or, for pictures, pillow and transformers
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from reading import Reading

HERE = Path(__file__).resolve().parent


def _one(values: Any) -> np.ndarray:
    """A batch of one: token ids, or pixel values as they are."""
    return np.array([values], None if isinstance(values, np.ndarray) else np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="+", help="a text, or a picture's file; of a model of two texts both")
    asked = parser.parse_args()
    if sys.platform != "darwin":
        parser.error("Core ML runs on macOS alone; elsewhere `exporter bench` evaluates the program")
    import coremltools

    program = json.loads((HERE / "program.json").read_text(encoding="utf-8"))
    reading = Reading(HERE)
    feeds = reading.feeds(*asked.text, limit=program["max_length"])  # a picture has none
    model = coremltools.models.MLModel(str(HERE / "model.mlpackage"))
    answer = model.predict({name: _one(feeds[name]) for name in program["inputs"]})
    print(json.dumps(reading.answer(answer[program["output"]][0]), ensure_ascii=False))


if __name__ == "__main__":
    main()
