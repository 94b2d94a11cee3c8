"""How well each of some texts fits a picture, by the model in this folder and transformers. Prints a line of JSON.

pip install pillow torch transformers    (and torchao, where config.json has a quantization_config)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForZeroShotImageClassification, AutoTokenizer

HERE = Path(__file__).resolve().parent
TEXTS = ["a photo of a person", "a photo of an animal", "a photo of a thing"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", nargs="?", type=Path, help="a file; without one a gradient is looked at")
    parser.add_argument("texts", nargs="*", default=TEXTS, help="one of them is chosen; default: three kinds of photos")
    asked = parser.parse_args()
    picture = Image.open(asked.picture) if asked.picture else Image.linear_gradient("L")
    processor = AutoImageProcessor.from_pretrained(HERE, backend="pil")
    model = AutoModelForZeroShotImageClassification.from_pretrained(HERE, dtype="auto").eval()
    pixels = processor(images=[picture.convert("RGB")], return_tensors="pt")["pixel_values"].to(model.dtype)
    told = AutoTokenizer.from_pretrained(HERE)(list(asked.texts), padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**told, pixel_values=pixels).logits_per_image[0].float()
    answers = logits.softmax(-1)
    scores = {asked.texts[int(at)]: float(answers[at]) for at in answers.argsort(descending=True)}
    print(json.dumps(scores, ensure_ascii=False))


if __name__ == "__main__":
    main()
