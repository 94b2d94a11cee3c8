"""A picture's vector, by onnx/model.onnx beside this file: ONNX Runtime and the image processor. Prints it as JSON.

pip install onnxruntime pillow transformers
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image
from transformers import AutoImageProcessor
from vector import vector

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", nargs="?", type=Path, help="a file; without one a gradient is looked at")
    asked = parser.parse_args()
    picture = Image.open(asked.picture) if asked.picture else Image.linear_gradient("L")
    processor = AutoImageProcessor.from_pretrained(HERE, backend="pil")
    pixels = processor(images=[picture.convert("RGB")], return_tensors="np")["pixel_values"].astype(np.float32)
    has = onnxruntime.get_available_providers()
    providers = [one for one in ("CUDAExecutionProvider", "CPUExecutionProvider") if one in has]
    session = onnxruntime.InferenceSession(str(HERE / "onnx" / "model.onnx"), providers=providers)
    print(json.dumps(vector(session.run(None, {"pixel_values": pixels})[0][0].astype(np.float64)).tolist()))


if __name__ == "__main__":
    main()
