"""A picture's labels, by onnx/model.onnx beside this file: ONNX Runtime and the image processor. Prints a line of JSON.

pip install onnxruntime pillow transformers
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image
from transformers import AutoImageProcessor

HERE = Path(__file__).resolve().parent


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
    parser.add_argument("picture", nargs="?", type=Path, help="a file; without one a gradient is looked at")
    asked = parser.parse_args()
    picture = Image.open(asked.picture) if asked.picture else Image.linear_gradient("L")
    config = json.loads((HERE / "config.json").read_text(encoding="utf-8"))
    processor = AutoImageProcessor.from_pretrained(HERE, backend="pil")
    pixels = processor(images=[picture.convert("RGB")], return_tensors="np")["pixel_values"].astype(np.float32)
    has = onnxruntime.get_available_providers()
    providers = [one for one in ("CUDAExecutionProvider", "CPUExecutionProvider") if one in has]
    session = onnxruntime.InferenceSession(str(HERE / "onnx" / "model.onnx"), providers=providers)
    logits = session.run(None, {"pixel_values": pixels})[0][0]
    print(json.dumps(scores(config, logits.astype(np.float64)), ensure_ascii=False))


if __name__ == "__main__":
    main()
