"""Where engines run (`--device`), and NVIDIA's GPUs, asked of the driver itself.

The CUDA driver API (https://docs.nvidia.com/cuda/cuda-driver-api) is called through its own library: importing torch
takes seconds, and a machine that only measures artifacts has none.
"""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable
from typing import Any

from exporter.errors import BuildError, JobError

AUTO, CPU, CUDA = "auto", "cpu", "cuda"
PATTERN = r"^(auto|cpu|cuda(:\d+)?)$"


def check_device(text: str) -> str:
    """Raises ValueError for what `--device` cannot be."""
    if re.search(PATTERN, text) is None:
        raise ValueError("a device is auto, cpu, cuda, or one of several GPUs by its number, such as cuda:1")
    return text


def gpu_number(asked: str) -> int | None:
    """The GPU that `--device` means, by CUDA's number; None: the CPU. Raises JobError for one that is not there."""
    if asked == CPU:
        return None
    there = count()
    number = int(asked.partition(":")[2] or 0)
    if number < there:
        return number
    if asked == AUTO:
        return None
    has = f"only {there}, from cuda:0 on" if there else "no CUDA device"
    raise JobError(f"--device {asked}: this machine has {has}; --device auto takes what there is, --device cpu none")


def was_asked(asked: str) -> bool:
    """Whether a GPU is wanted, and nothing else will do."""
    return asked.startswith(CUDA)


def named(number: int | None) -> str:
    """A device as a report names it: cpu, or cuda:0 (NVIDIA H100)."""
    return CPU if number is None else f"{CUDA}:{number} ({_name(number)})"


def count() -> int:
    """How many GPUs NVIDIA's driver shows this process (CUDA_VISIBLE_DEVICES counts); 0 without a driver."""
    driver = _driver()
    found = ctypes.c_int(0)
    return 0 if driver is None or driver.cuDeviceGetCount(ctypes.byref(found)) else found.value


@functools.cache
def _driver() -> Any:
    """The driver's library, ready to be asked; None where there is no driver, or it has no device."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return driver if driver.cuInit(0) == 0 else None


def _name(number: int) -> str:
    text = ctypes.create_string_buffer(256)
    _call("cuDeviceGetName", text, len(text), ctypes.c_int(number))
    return text.value.decode()


def _call(function: str, *arguments: Any) -> None:
    """Calls the driver. Raises BuildError with its status."""
    driver = _driver()
    status = -1 if driver is None else getattr(driver, function)(*arguments)
    if status:
        raise BuildError(f"CUDA's driver failed in {function} with status {status}")


class Gpu:
    """One GPU with a stream of its own, in the context that CUDA's runtime uses too (the device's primary one)."""

    def __init__(self, number: int) -> None:
        self.number, self.name = number, _name(number)
        context, stream = ctypes.c_void_p(), ctypes.c_void_p()
        _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), ctypes.c_int(number))
        _call("cuCtxSetCurrent", context)
        # One that waits for the default stream: that is where an engine copies its inputs.
        _call("cuStreamCreate", ctypes.byref(stream), 0)
        self._stream = stream
        self._begin, self._end = self._event(), self._event()

    @property
    def stream(self) -> int:
        """The stream's address."""
        return self._stream.value or 0

    def free_bytes(self) -> int:
        """Memory on the device that nobody has."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        _call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def milliseconds(self, work: Callable[[], object]) -> float:
        """The device's own time for what `work` puts on the stream, between two events."""
        elapsed = ctypes.c_float()
        _call("cuEventRecord", self._begin, self._stream)
        work()
        _call("cuEventRecord", self._end, self._stream)
        _call("cuEventSynchronize", self._end)
        _call("cuEventElapsedTime", ctypes.byref(elapsed), self._begin, self._end)
        return elapsed.value

    @staticmethod
    def _event() -> ctypes.c_void_p:
        event = ctypes.c_void_p()
        _call("cuEventCreate", ctypes.byref(event), 0)
        return event
