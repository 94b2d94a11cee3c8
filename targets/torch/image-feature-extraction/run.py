"""A picture's vector, by the model in this folder and transformers. Prints it as JSON.

pip install pillow torch transformers    (and torchao, where config.json has a quantization_config)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel
from vector import vector

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", nargs="?", type=Path, help="a file; without one a gradient is looked at")
    asked = parser.parse_args()
    picture = Image.open(asked.picture) if asked.picture else Image.linear_gradient("L")
    processor = AutoImageProcessor.from_pretrained(HERE, backend="pil")
    model = AutoModel.from_pretrained(HERE, dtype="auto").eval()
    pixels = processor(images=[picture.convert("RGB")], return_tensors="pt")["pixel_values"].to(model.dtype)
    with torch.inference_mode():
        states = model(pixel_values=pixels).last_hidden_state[0].float().numpy()
    print(json.dumps(vector(states).tolist()))


if __name__ == "__main__":
    main()
