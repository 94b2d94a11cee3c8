"""How many threads the arithmetic takes. NumPy has no call for its products' threads, its OpenBLAS has."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

Item = TypeVar("Item")

_FOLDERS = ("../numpy.libs", ".dylibs", "../numpy/.libs")  # where its wheels keep the library
_CALLS = ("scipy_openblas_set_num_threads64_", "openblas_set_num_threads64_", "openblas_set_num_threads")
_KEPT = (32 << 20) - (64 << 10)  # bytes
_chosen = [1]  # of the whole process, as BLAS's own are


def set_threads(count: int) -> bool:
    """Of this process. False where NumPy has another library: Apple's Accelerate counts its threads itself."""
    _chosen[0] = count
    call = _blas_call()
    if call is not None:
        call(count)
    return call is not None


def spread(function: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Calls a function with each item, on as many threads as were chosen; each multiplies on one."""
    if _chosen[0] == 1:
        for item in items:
            function(item)
        return

    def quietly(item: Item) -> None:
        with np.errstate(all="ignore"):  # which a thread has of its own
            function(item)

    call = _blas_call()
    if call is not None:
        call(1)
    try:
        for _ in _pool(_chosen[0]).map(quietly, items):
            pass
    finally:
        if call is not None:
            call(_chosen[0])


def keep_memory() -> None:
    """Has glibc keep what is freed, instead of giving it back to the system and taking it again at each operator.

    It takes the largest freed block as the measure of what to keep, up to 32 MiB (mallopt(3), M_MMAP_THRESHOLD): a
    sixth of SmolLM2's time went into the page faults. Nothing is written into the block, so no memory is taken.
    """
    np.empty(_KEPT, np.uint8)  # freed at once


@cache
def _pool(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="mil")


@cache
def _blas_call() -> Any:
    """OpenBLAS's function that sets its threads; None where NumPy has another library."""
    root = Path(np.__file__).parent
    for library in (path for folder in _FOLDERS for path in sorted((root / folder).glob("*openblas*"))):
        opened = ctypes.CDLL(str(library.resolve()))  # the one that is loaded already
        for name in _CALLS:
            if hasattr(opened, name):
                return getattr(opened, name)
    return None
