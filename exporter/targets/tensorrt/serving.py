"""What others need to serve or rebuild an engine: a model repository for Triton, and NVIDIA's command line.

Triton's TensorRT backend opens TensorRT's engines, not TensorRT-RTX's: the repository of the latter, and of a graph
without an engine, holds the ONNX file for Triton's ONNX Runtime backend.
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_repository.html
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from exporter.targets.folder.files import hard_link, model_name
from exporter.targets.tensorrt.build import PLAN, How
from exporter.targets.tensorrt.platform import Platform
from exporter.targets.tensorrt.profile import Port, Shapes

REBUILD = "rebuild.sh"
_KINDS = {
    "FLOAT": "FP32", "FLOAT16": "FP16", "BFLOAT16": "BF16", "INT64": "INT64", "INT32": "INT32", "BOOL": "BOOL",
}  # fmt: skip


def write_repository(
    folder: Path, source: str, platform: Platform, inputs: Mapping[str, Port], outputs: Mapping[str, Port]
) -> None:
    """Writes folder/triton/NAME/{config.pbtxt,1/…}, for `tritonserver --model-repository=folder/triton`.

    The model is there under a second name (a hard link): the repository can be mounted by itself, and a symbolic link
    out of it would lead nowhere.
    """
    serves = (folder / PLAN).is_file() and not platform.ahead_of_time
    name = model_name(source)
    version = folder / "triton" / name / "1"
    version.mkdir(parents=True)
    for file in (PLAN,) if serves else ("model.onnx", "model.onnx_data"):
        if (folder / file).is_file():
            hard_link(folder / file, version / file)
    backend = "tensorrt" if serves else "onnxruntime"
    # 0: the batch is an axis like the others, for the cache has one too.
    text = f'name: "{name}"\nbackend: "{backend}"\nmax_batch_size: 0\n'
    text += _ports("input", inputs) + _ports("output", outputs)
    (version.parent / "config.pbtxt").write_text(text, encoding="utf-8")


def _ports(what: str, ports: Mapping[str, Port]) -> str:
    import onnx

    entries = []
    for name, port in ports.items():
        kind = _KINDS[onnx.TensorProto.DataType.Name(port.kind)]
        sizes = ", ".join("-1" if isinstance(size, str) else str(size) for size in port.dimensions)
        entries.append(f'  {{ name: "{name}" data_type: TYPE_{kind} dims: [ {sizes} ] }}')
    return f"{what} [\n" + ",\n".join(entries) + "\n]\n"


def rebuild_command(platform: Platform, shapes: Mapping[str, Shapes], how: How) -> str:
    """A shell script that builds the engine again from model.onnx beside it, with NVIDIA's own tool."""
    words = [platform.tool, "--onnx=model.onnx", f"--saveEngine={PLAN}"]
    if not platform.ahead_of_time:
        words.append("--stronglyTyped")
    for index, point in enumerate(("min", "opt", "max")):
        sizes = ",".join(f"{name}:{'x'.join(map(str, each[index]))}" for name, each in shapes.items())
        words.append(f"--{point}Shapes={sizes}")
    if how.exact_float32:
        words.append("--noTF32")
    if how.workspace is not None:
        words.append(f"--memPoolSize=workspace:{how.workspace}B")
    if how.capabilities:
        words.append(f"--computeCapabilities={','.join(name.removeprefix('sm') for name in how.capabilities)}")
    if how.hardware_compatible:
        words.append("--hardwareCompatibilityLevel=ampere+")
    if how.version_compatible:
        words.append("--versionCompatible")
    line = shlex.join([*words, "--profilingVerbosity=detailed", "--skipInference"])
    return f"#!/bin/sh\n# TensorRT's own tool, from the same graph and profile.\n{line}\n"
