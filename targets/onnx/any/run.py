"""What the model says of a text, by onnx/model.onnx beside this file: ONNX Runtime and the tokenizer.

Prints it as a line of JSON; reading.py says what it means. pip install onnxruntime tokenizers
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from reading import Reading

HERE = Path(__file__).resolve().parent


def longest() -> int | None:
    """Tokens that are read of a text; a tokenizer without a limit of its own says 10^30."""
    config = json.loads((HERE / "config.json").read_text(encoding="utf-8"))
    settings = HERE / "tokenizer_config.json"
    said = json.loads(settings.read_text(encoding="utf-8")).get("model_max_length") if settings.is_file() else None
    limit = said or config.get("max_position_embeddings") or 0
    return int(limit) if 0 < limit < 1 << 20 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="+", help="a text; of a model that takes two, both: a question and its text")
    asked = parser.parse_args()
    reading = Reading(HERE)
    feeds = reading.feeds(*asked.text, limit=longest())
    has = onnxruntime.get_available_providers()
    providers = [one for one in ("CUDAExecutionProvider", "CPUExecutionProvider") if one in has]
    session = onnxruntime.InferenceSession(str(HERE / "onnx" / "model.onnx"), providers=providers)
    inputs = {value.name for value in session.get_inputs()}
    outputs = session.run(None, {name: np.array([feeds[name]], np.int64) for name in feeds if name in inputs})
    logits = outputs[0][0] if len(outputs) == 1 else np.stack([output[0] for output in outputs], -1)
    print(json.dumps(reading.answer(logits), ensure_ascii=False))


if __name__ == "__main__":
    main()
