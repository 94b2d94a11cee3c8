"""What the model says of a text or a picture, by onnx/model.onnx beside this file and ONNX Runtime.

Prints it as a line of JSON; reading.py says what it means. pip install onnxruntime, and tokenizers
or, for pictures, pillow and transformers
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from reading import Reading

HERE = Path(__file__).resolve().parent


def _one(values: Any) -> np.ndarray:
    """A batch of one: token ids, or pixel values as they are."""
    return np.array([values], None if isinstance(values, np.ndarray) else np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="+", help="a text, or a picture's file; of a model of two texts both")
    asked = parser.parse_args()
    reading = Reading(HERE)
    feeds = reading.feeds(*asked.text)
    has = onnxruntime.get_available_providers()
    providers = [one for one in ("CUDAExecutionProvider", "CPUExecutionProvider") if one in has]
    session = onnxruntime.InferenceSession(str(HERE / "onnx" / "model.onnx"), providers=providers)
    inputs = {value.name for value in session.get_inputs()}
    outputs = session.run(None, {name: _one(feeds[name]) for name in feeds if name in inputs})
    logits = outputs[0][0] if len(outputs) == 1 else np.stack([output[0] for output in outputs], -1)
    print(json.dumps(reading.answer(logits), ensure_ascii=False))


if __name__ == "__main__":
    main()
