"""Stored float tensors as torch's, without a copy where none is needed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.checkpoint.weights import Stored

TORCH_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def tensor(stored: Stored) -> Any:
    """A stored tensor in float32."""
    return as_tensor(stored.read(), stored.dtype).reshape(stored.shape).to(torch_dtype("float32"))


def as_tensor(data: NDArray[np.uint8], dtype: str) -> Any:
    """Bytes as a flat tensor of safetensors' `dtype`, without a copy."""
    import torch

    return torch.from_numpy(data).view(torch_dtype(TORCH_DTYPES[dtype]))


def torch_dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)


def is_finite(value: Any) -> bool:
    """Whether a float tensor holds neither NaN nor infinity: in one pass and without the copies of torch.isfinite."""
    import torch

    if not value.numel():
        return True
    low, high = torch.aminmax(value)  # a NaN anywhere is in both
    return bool(torch.isfinite(low) & torch.isfinite(high))
