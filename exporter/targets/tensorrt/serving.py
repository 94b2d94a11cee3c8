"""What others need to serve, run or rebuild an engine: a model repository for Triton, and NVIDIA's command lines.

Triton's TensorRT backend opens TensorRT's engines, not TensorRT-RTX's: the repository of the latter, and of a graph
without an engine, holds the ONNX file for Triton's ONNX Runtime backend.
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_repository.html
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exporter.targets.folder.files import hard_link, model_name
from exporter.targets.folder.kit import render
from exporter.targets.onnx_graph.traced import NEW, PAST, READ, SOURCE, TOTAL
from exporter.targets.tensorrt.build import PLAN, How
from exporter.targets.tensorrt.parts import DATA, MODEL
from exporter.targets.tensorrt.platform import Platform
from exporter.targets.tensorrt.profile import Dimensions, Port, Profile, Shapes

REBUILD, RUN = "rebuild.sh", "run.sh"
_KINDS = {
    "FLOAT": "FP32", "FLOAT16": "FP16", "BFLOAT16": "BF16", "INT64": "INT64", "INT32": "INT32", "BOOL": "BOOL",
}  # fmt: skip


def write_repository(
    folder: Path,
    source: str,
    platform: Platform,
    inputs: Mapping[str, Port],
    outputs: Mapping[str, Port],
    part: str = "",
) -> None:
    """Writes folder/triton/NAME/{config.pbtxt,1/…}, for `tritonserver --model-repository=folder/triton`.

    Of a graph in a folder of its own, `part`, it is NAME-PART.

    The model is there under a second name (a hard link): the repository can be mounted by itself, and a symbolic link
    out of it would lead nowhere.
    """
    serves = (folder / part / PLAN).is_file() and not platform.ahead_of_time
    name = model_name(source) + f"-{part}" * bool(part)
    version = folder / "triton" / name / "1"
    version.mkdir(parents=True)
    for file in (PLAN,) if serves else (MODEL, DATA):
        if (folder / part / file).is_file():
            hard_link(folder / part / file, version / file)
    backend = "tensorrt" if serves else "onnxruntime"
    text = render(
        "tensorrt", "config.pbtxt", {"quoted": _quoted},
        name=name, backend=backend, inputs=_ports(inputs), outputs=_ports(outputs),
    )  # fmt: skip
    (version.parent / "config.pbtxt").write_text(text, encoding="utf-8")


def _ports(ports: Mapping[str, Port]) -> list[dict[str, Any]]:
    """Triton's words for the ports; a named axis is -1."""
    import onnx

    return [
        {
            "name": name,
            "type": _KINDS[onnx.TensorProto.DataType.Name(port.kind)],
            "sizes": [-1 if isinstance(size, str) else size for size in port.dimensions],
        }
        for name, port in ports.items()
    ]


def _quoted(text: str) -> str:
    """A string of protobuf's text format."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def rebuild_command(platform: Platform, shapes: Mapping[str, Shapes], how: How) -> str:
    """A shell script that builds the engine again from model.onnx beside it, with NVIDIA's own tool."""
    points = {
        point: ",".join(f"{name}:{'x'.join(map(str, each[index]))}" for name, each in shapes.items())
        for index, point in enumerate(("min", "opt", "max"))
    }
    capabilities = [name.removeprefix("sm") for name in how.capabilities or ()]
    return render(
        "tensorrt", REBUILD, {"word": shlex.quote},
        platform=platform, plan=PLAN, shapes=points, how=how, capabilities=capabilities,
    )  # fmt: skip


def run_command(platform: Platform, dimensions: Mapping[str, Dimensions], profile: Profile) -> str:
    """A shell script that runs the engine once, on random numbers, and times it.

    A decoder takes one token after a text of the profile's usual length: its first inputs would be an empty cache. So
    does one that has a source, all of which is in its cache then.
    """
    decoder = any(PAST in each for each in dimensions.values())
    length = profile.length.opt
    sizes: dict[str, int] = {name: each.opt for name, each in profile.axes().items()}
    if decoder:
        sizes |= {NEW: 1, PAST: length - 1, TOTAL: length, READ: sizes[SOURCE]}
    shapes = ",".join(
        f"{name}:{'x'.join(str(sizes[axis]) if isinstance(axis, str) else str(axis) for axis in each)}"
        for name, each in dimensions.items()
    )
    return render(
        "tensorrt", RUN, {"word": shlex.quote},
        platform=platform, plan=PLAN, rebuild=REBUILD, shapes=shapes, decoder=decoder,
    )  # fmt: skip


def both_command(file: str, parts: Sequence[str]) -> str:
    """A shell script that runs the one of that name in each of these folders beside it."""
    return render("tensorrt", "both.sh", {"word": shlex.quote}, file=file, parts=parts)
