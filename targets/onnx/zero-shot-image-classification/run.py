"""How well each of some texts fits a picture, by onnx/model.onnx beside this file: ONNX Runtime, tokenizer and image
processor. Prints a line of JSON.

pip install onnxruntime pillow transformers
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer

HERE = Path(__file__).resolve().parent
TEXTS = ["a photo of a person", "a photo of an animal", "a photo of a thing"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", nargs="?", type=Path, help="a file; without one a gradient is looked at")
    parser.add_argument("texts", nargs="*", default=TEXTS, help="one of them is chosen; default: three kinds of photos")
    asked = parser.parse_args()
    picture = Image.open(asked.picture) if asked.picture else Image.linear_gradient("L")
    processor = AutoImageProcessor.from_pretrained(HERE, backend="pil")
    pixels = processor(images=[picture.convert("RGB")], return_tensors="np")["pixel_values"].astype(np.float32)
    told = AutoTokenizer.from_pretrained(HERE)(list(asked.texts), padding=True, truncation=True, return_tensors="np")
    feeds = {name: told[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
    has = onnxruntime.get_available_providers()
    providers = [one for one in ("CUDAExecutionProvider", "CPUExecutionProvider") if one in has]
    session = onnxruntime.InferenceSession(str(HERE / "onnx" / "model.onnx"), providers=providers)
    [logits] = session.run(["logits_per_image"], {**feeds, "pixel_values": pixels})[0].astype(np.float64)
    powers = np.exp(logits - logits.max())
    scores = {asked.texts[at]: float(powers[at] / powers.sum()) for at in np.argsort(-logits)}
    print(json.dumps(scores, ensure_ascii=False))


if __name__ == "__main__":
    main()
