"""What litert-torch must be kept from, each with its reason; nothing of it stays behind."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_FEW = 8  # numbers: fewer than any normalization has
_THRESHOLD = "RESOURCE_CONSTANT_NUMEL_THRESHOLD"  # litert-torch reads it from the environment


@contextmanager
def alone() -> Iterator[None]:
    """Lets its packages be imported and work without a word of their own.

    litert-torch tells its progress on stdout by rich; absl, which its packages log by, warns of every import it did not
    find on this system; torch's own exporter warns of what it renames.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "torch", "jax", "root")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import litert_torch

        shown, litert_torch.config.show_progress = litert_torch.config.show_progress, False
        try:
            yield
        finally:
            litert_torch.config.show_progress = shown
            for one, level in zip(loggers, levels, strict=True):
                one.setLevel(level)


@contextmanager
def weights_as_they_are() -> Iterator[None]:
    """Keeps LiteRT's converter from multiplying a normalization's scale into the weights of the layer behind it.

    A policy speaks of the model's own weights and inputs, and codes that GPTQ or training chose lie on their grids.
    The converter does not look into what litert-torch calls resources: here all that has more than a few numbers.
    """
    before = os.environ.get(_THRESHOLD)
    os.environ[_THRESHOLD] = str(_FEW)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_THRESHOLD]
        else:
            os.environ[_THRESHOLD] = before


def keep_biases(model: Any) -> None:
    """Gives a layer normalization's bias that is all zeros one number that float32 loses in the sum.

    The converter drops an addition of zeros, and multiplies the scale that then stands alone into the weights behind
    it, whatever it was kept from looking into.
    """
    import torch

    for norm in (one for one in model.modules() if isinstance(one, torch.nn.LayerNorm)):
        if norm.bias is not None and not norm.bias.any():
            norm.bias.data[0] = torch.finfo(torch.float32).tiny
