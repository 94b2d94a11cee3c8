"""The machine that numbers were measured on. Nothing here imports an engine."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from exporter import distribution, forkserver

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
    "pillow",
    "llama-cpp-python",
    "tensorrt",
    "tensorrt-rtx",
    "gguf",
    "coremltools",
    "litert-torch",
    "litert-converter",
    "ai-edge-litert",
    "ai-edge-quantizer",
    "numpy",
)
# CPU features that decide which kernels an engine can use, in Linux's and macOS's words.
FEATURES = (
    "avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "i8mm", "bf16",
)  # fmt: skip


def usable_cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def available_memory() -> int:
    """Bytes that this process could still take: the machine's, its container's (cgroup 1 and 2) or its own limit's."""
    import resource

    import psutil

    free = [psutil.virtual_memory().available]
    for limit, kind, statistics in _cgroups():
        allowed, used = _number(limit), _statistic(statistics, kind)
        if allowed is not None and used is not None:
            free.append(max(0, allowed - used))
    for what in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft, _ = resource.getrlimit(what)
        if soft != resource.RLIM_INFINITY:
            free.append(max(0, soft - psutil.Process().memory_info().rss))
    return min(free)


def peak_rss() -> int:
    """Peak resident bytes of this process, or of the largest one that it started."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    own, started = (
        resource.getrusage(who).ru_maxrss * unit for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    if sys.platform == "linux":
        # ru_maxrss is handed on through fork and exec: a large parent's memory would be taken for this process's.
        own = forkserver.resident("VmHWM") + forkserver.unread()
    return max(own, started)


def _cgroups() -> Iterator[tuple[Path, str, Path]]:
    """This process's memory cgroup: its limit's file, what memory.stat calls its processes' own, memory.stat."""
    listing = Path("/proc/self/cgroup")
    for line in listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folder = Path("/sys/fs/cgroup") / path.lstrip("/")
            yield folder / "memory.max", "anon", folder / "memory.stat"
        elif controllers == "memory":
            folder = Path("/sys/fs/cgroup/memory") / path.lstrip("/")
            yield folder / "memory.limit_in_bytes", "total_rss", folder / "memory.stat"


def _number(path: Path) -> int | None:
    """The number in a file of the kernel's; None where there is no file, or no limit."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _statistic(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(value) for key, value in (line.split() for line in lines) if key == name), None)


def versions() -> dict[str, str]:
    """The installed ones of PACKAGES, and the packages that bring third parties' targets."""
    brought = {point.dist.name for point in metadata.entry_points(group="exporter.targets") if point.dist}
    found = {package: version_of(package) for package in (*PACKAGES, *sorted(brought - set(PACKAGES)))}
    found[distribution.MODULE] = distribution.version()  # this program's, whatever is installed under that name
    return {package: version for package, version in found.items() if version is not None}


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


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
    """The first GPU's name; None without one."""
    found = gpus()
    return str(found[0]["name"]) if found else None


def gpus() -> list[dict[str, Any]]:
    """NVIDIA's GPUs, asked of the driver's own tool: name, driver version and memory."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = "--query-gpu=name,driver_version,memory.total"
    done = subprocess.run(
        [tool, query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=30, check=False
    )
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    rows = [line.split(", ") for line in lines if line.count(", ") == 2]
    return [
        {"name": name, "driver": driver, "memory_bytes": int(mib) << 20 if mib.isdigit() else None}
        for name, driver, mib in rows
    ]
