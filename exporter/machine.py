"""The machine that numbers were measured on, and what is known to go wrong on it. Nothing here imports an engine."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from exporter.job import usable_cores

# The packages whose versions decide what an artifact is.
PACKAGES = (
    "exporter",
    "torch",
    "transformers",
    "peft",
    "optimum",
    "torchao",
    "safetensors",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-genai",
    "numpy",
)
# CPU features that decide which kernels an engine can use, in Linux's and macOS's words.
FEATURES = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "i8mm", "bf16")


def describe(threads: int) -> dict[str, Any]:
    """The report's machine section."""
    import psutil

    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "threads": threads,
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": list(psutil.getloadavg()),
        "gpu": gpu_name(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """The installed ones of PACKAGES."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    """Those of FEATURES that this processor has, where the system tells (Linux)."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return []
    words = set(info.read_text(encoding="utf-8").split())
    return [feature for feature in FEATURES if feature in words]


def gpu_name() -> str | None:
    """NVIDIA's name of the first GPU, asked of its driver's own tool; None without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    done = subprocess.run(
        [tool, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=30, check=False
    )
    names = done.stdout.strip().splitlines()
    return names[0] if done.returncode == 0 and names else None


def troubles() -> list[str]:
    """Pairs of packages and settings that are known to go wrong, each with the command that mends it."""
    found = versions()
    lines = []
    if "onnxruntime" in found and "onnxruntime-gpu" in found:
        lines.append(
            "onnxruntime and onnxruntime-gpu share one folder and break each other: "
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime"
        )
    if _older(found, "onnxruntime-genai", (0, 14)):
        lines.append(
            f"onnxruntime-genai {found['onnxruntime-genai']} writes the wrong rope_theta for transformers 5: "
            "pip install -U 'onnxruntime-genai>=0.18'"
        )
    if "optimum-onnx" in found:
        lines.append("optimum-onnx pins transformers below 4.58, and exporter needs 5: pip uninstall optimum-onnx")
    if os.environ.get("PYTORCH_JIT") == "0":
        lines.append("PYTORCH_JIT=0 breaks tracing: unset PYTORCH_JIT")
    return lines


def _older(found: dict[str, str], package: str, version: tuple[int, int]) -> bool:
    return package in found and tuple(int(part) for part in found[package].split(".")[:2]) < version
