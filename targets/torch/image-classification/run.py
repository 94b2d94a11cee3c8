"""A picture's labels, by the model in this folder and transformers. Prints them as a line of JSON.

pip install pillow torch transformers    (and torchao, where config.json has a quantization_config)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedConfig

HERE = Path(__file__).resolve().parent


def scores(config: PreTrainedConfig, logits: torch.Tensor) -> dict[str, float]:
    """Each label's probability, the likeliest first; of a model that answers numbers, the numbers."""
    if config.problem_type == "multi_label_classification":  # each label is a yes or no of its own
        answers = logits.sigmoid()
    elif config.problem_type == "regression" or len(logits) == 1:
        return {config.id2label[at]: answer for at, answer in enumerate(logits.tolist())}
    else:
        answers = logits.softmax(-1)
    return {config.id2label[int(at)]: float(answers[at]) for at in answers.argsort(descending=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", nargs="?", type=Path, help="a file; without one a gradient is looked at")
    asked = parser.parse_args()
    picture = Image.open(asked.picture) if asked.picture else Image.linear_gradient("L")
    processor = AutoImageProcessor.from_pretrained(HERE, backend="pil")
    model = AutoModelForImageClassification.from_pretrained(HERE, dtype="auto").eval()
    pixels = processor(images=[picture.convert("RGB")], return_tensors="pt")["pixel_values"].to(model.dtype)
    with torch.inference_mode():
        logits = model(pixel_values=pixels).logits[0].float()
    print(json.dumps(scores(model.config, logits), ensure_ascii=False))


if __name__ == "__main__":
    main()
