"""A float32 graph with fused attention, from onnxruntime-genai's model builder.

The builder runs as a program of its own, so that its memory and its imports are not this process's. Its list of
architectures is read from its source: it offers no other, and an import of it would load torch.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from exporter.errors import BuildError

_DISPATCH = re.compile(r'architectures\[0\] == "(\w+ForCausalLM)"')


def builder_takes(architecture: str) -> bool:
    """Whether the installed builder has code for a text-generation architecture."""
    spec = find_spec("onnxruntime_genai")
    if spec is None or spec.origin is None:
        return False
    source = Path(spec.origin).parent / "models" / "builder.py"
    return architecture in _DISPATCH.findall(source.read_text(encoding="utf-8"))


def build_float(checkpoint: Path, folder: Path) -> Path:
    """Writes model.onnx, its data and genai_config.json into a folder; returns the model's path. Raises BuildError."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "fp32", "-e", "cpu"]
    command += ["-i", str(checkpoint), "-o", str(folder), "-c", str(folder / "cache")]
    log = folder.with_name(folder.name + ".log")
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False)
    said = log.read_text(encoding="utf-8", errors="replace")
    model = folder / "model.onnx"
    if done.returncode != 0 or not model.is_file():
        raise BuildError(f"onnxruntime-genai's builder failed with status {done.returncode}: {_last_line(said)}")
    print(said)  # into this worker's log
    return model


def _last_line(text: str) -> str:
    lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
    full = next((line for line in lines if "No space left on device" in line), None)
    return full or (lines[-1] if lines else "it printed nothing")
