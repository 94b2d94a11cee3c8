"""A checkpoint's image processor: from a picture to the pixel values that its model reads.

Always transformers' own in Pillow and NumPy: with torchvision, where that happens to be installed, the same settings
give other values.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from exporter.checkpoint.pictures import Rgb, check_pillow, image
from exporter.errors import JobError, one_line
from exporter.runner import Floats
from exporter.types import PROCESSOR_FILES

_TRIED = ((300, 200), (180, 320), (97, 61))  # heights and widths: portrait, landscape, small


def read_processor(folder: Path, trust: bool) -> Any:
    """The image processor of a folder. Raises JobError, or MissingPackage without Pillow."""
    from transformers import AutoImageProcessor

    check_pillow()
    if not any((folder / name).is_file() for name in PROCESSOR_FILES):
        raise JobError(
            f"{folder} has no {PROCESSOR_FILES[0]}: how a picture becomes its model's input is not known; copy it "
            "there from the model it is of"
        )
    try:
        load: Any = AutoImageProcessor.from_pretrained  # which transformers leaves untyped
        return load(folder, backend="pil", trust_remote_code=trust)
    except (ValueError, KeyError, OSError, ImportError, TypeError) as error:
        raise JobError(f"the image processor of {folder} cannot be loaded: {one_line(error)}") from error


def pixels(processor: Any, pictures: Iterable[Rgb]) -> Floats:
    """[n, C, H, W] of pictures, one at a time as a client reads them. Raises JobError where they differ in size."""
    made = [_one(processor, picture) for picture in pictures]
    shapes = list(dict.fromkeys(one.shape for one in made))
    if len(shapes) > 1:
        told = " and ".join("x".join(map(str, shape)) for shape in shapes[:2])
        raise JobError(
            f"its image processor makes pictures of several sizes ({told}), and a batch has one: give "
            f"{PROCESSOR_FILES[0]} a size with height and width, or a crop_size"
        )
    return np.stack(made)


def picture_shape(processor: Any) -> tuple[int, int, int]:
    """[C, H, W] of every picture. Raises JobError where they differ."""
    _, channels, height, width = pixels(processor, (np.full((*size, 3), 127, np.uint8) for size in _TRIED)).shape
    return channels, height, width


def _one(processor: Any, picture: Rgb) -> Floats:
    made: Floats = np.asarray(processor(images=[image(picture)], return_tensors="np")["pixel_values"][0], np.float32)
    if made.ndim != 3:
        raise JobError(f"its image processor makes {made.ndim - 1} pictures of one, which is not measured")
    return made
