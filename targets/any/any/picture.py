"""A picture as this folder's model is fed it. pip install pillow transformers"""

from __future__ import annotations

from pathlib import Path

import numpy as np


def pixels(folder: Path, file: str) -> np.ndarray:
    """float32 [C, H, W] of a picture's file, by preprocessor_config.json."""
    from PIL import Image
    from PIL.ImageOps import exif_transpose
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    with Image.open(file) as opened:
        upright = exif_transpose(opened).convert("RGB")
    return np.asarray(processor(images=[upright], return_tensors="np")["pixel_values"][0], np.float32)
