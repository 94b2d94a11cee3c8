"""How many threads NumPy's products take. NumPy has no call for it, its OpenBLAS has."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

_FOLDERS = ("../numpy.libs", ".dylibs", "../numpy/.libs")  # where its wheels keep the library
_CALLS = ("scipy_openblas_set_num_threads64_", "openblas_set_num_threads64_", "openblas_set_num_threads")


def set_threads(count: int) -> bool:
    """False where NumPy has another library: Apple's Accelerate counts its threads itself."""
    root = Path(np.__file__).parent
    for library in (path for folder in _FOLDERS for path in sorted((root / folder).glob("*openblas*"))):
        opened = ctypes.CDLL(str(library.resolve()))  # the one that is loaded already
        for name in _CALLS:
            if hasattr(opened, name):
                getattr(opened, name)(count)
                return True
    return False
