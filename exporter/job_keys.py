"""What a job's keys are called: as flags, where they are sections' now, and in complaints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from exporter.errors import unknown


def flag(*names: str) -> str:
    """The flag of a job's key, or of a section's: --gguf-imatrix."""
    return "--" + "-".join(names).replace("_", "-")


def complaint(flag: str, detail: Any) -> str:
    """One of pydantic's complaints of a value in a person's words."""
    error = detail.get("ctx", {}).get("error")
    message = detail["msg"][0].lower() + detail["msg"][1:] if error is None else str(error)
    return f"{flag} {detail['input']!r}: {message}"


# What is an option of a target or stage now: (section, key) for each key, or flag, that every job once had.
RENAMED: Mapping[str, Sequence[tuple[str, str]]] = {
    "qat": [("qat", "steps")],
    "imatrix": [("gguf", "imatrix")],
    "gguf_tensor": [("gguf", "tensor")],
    "gguf_split_max_size": [("gguf", "split_max_size")],
    "engine": [("tensorrt", "engine"), ("tensorrt-rtx", "engine")],
    "trt_profile": [("tensorrt", "profile"), ("tensorrt-rtx", "profile")],
    "trt_compute_capability": [("tensorrt-rtx", "compute_capability")],
    "trt_hardware_compatible": [("tensorrt", "hardware_compatible")],
    "trt_version_compatible": [("tensorrt", "version_compatible")],
    "trt_workspace": [("tensorrt", "workspace"), ("tensorrt-rtx", "workspace")],
}


def unknown_key(name: str, keys: Iterable[str]) -> str:
    """The line for a key that no job has: where it is now, or the nearest ones."""
    if name not in RENAMED:
        return unknown("key", name, keys)
    now = " or ".join(f"{section}: {{{key}: …}} ({flag(section, key)})" for section, key in RENAMED[name])
    return f"{name}: write it as a section, {now}"
