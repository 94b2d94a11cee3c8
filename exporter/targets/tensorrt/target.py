"""TensorRT and TensorRT-RTX: a plain ONNX graph of the precision that is asked for, and the engine built from it.

The folder holds the engine (model.plan), its exact graph, the profile, the builder's log, what its layers became, a
repository for Triton and the command that builds it again. Its size is the engine's, or without one the graph's. On a
GPU the engine itself is measured; elsewhere the graph is, on the CPU, and says so. Of an encoder-decoder there are two
of each, in the folders encoder and decoder.
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from exporter.device import count
from exporter.distribution import install_command
from exporter.errors import BuildError, JobError, unknown
from exporter.form import FORMS, TEXT2TEXT
from exporter.targets.folder.files import copy_configuration
from exporter.targets.folder.kit import kit
from exporter.targets.folder.limits import of_one_text_or_picture
from exporter.targets.tensorrt.build import PLAN, How, build, failed, parse
from exporter.targets.tensorrt.encoder_decoder import write_pair
from exporter.targets.tensorrt.graph import OPERATORS, write_graph
from exporter.targets.tensorrt.lint import refused
from exporter.targets.tensorrt.log import Log
from exporter.targets.tensorrt.options import EngineOptions, RtxOptions, TensorrtOptions
from exporter.targets.tensorrt.pair_runner import open_engines
from exporter.targets.tensorrt.parts import (
    DATA,
    MODEL,
    as_one,
    parts_of,
    share,
    together,
    two_of_four_in,
    weights_in,
    within,
)
from exporter.targets.tensorrt.platform import (
    RTX,
    TENSORRT,
    Platform,
    can_parse,
    cannot_run,
    capabilities,
    lacking,
)
from exporter.targets.tensorrt.precisions import PRECISIONS
from exporter.targets.tensorrt.profile import Profile, ports
from exporter.targets.tensorrt.quantize import cannot_express
from exporter.targets.tensorrt.runner import open_engine
from exporter.targets.tensorrt.serving import REBUILD, RUN, both_command, rebuild_command, run_command, write_repository
from exporter.targets.tensorrt.stand_in import open_stand_in
from exporter.targets.tensorrt.zeros import zeros_of
from exporter.targets.traced_model.cache import refused_cache
from exporter.types import (
    GENERATION,
    PROCESSOR_FILES,
    TOKENIZER_FILES,
    Exported,
    ExportRequest,
    Preparation,
    Target,
)

OLDEST = (10, 12)  # of TensorRT: the first whose strongly typed networks take all that the graphs hold
PROFILES = "profiles.json"
_SHIPPED = ("config.json", "generation_config.json", *TOKENIZER_FILES, *PROCESSOR_FILES)


def export(platform: Platform, request: ExportRequest) -> Exported:
    """Writes the artifact's folder. Raises BuildError for a refused graph, or an engine that cannot be built."""
    folder, task = request.folder, request.checkpoint.task
    options: EngineOptions = request.options
    parts = parts_of(task)
    models = {part: folder / part / MODEL for part in parts}
    request.progress(f"writing the graph{'s' * (len(parts) > 1)} of {platform.package}:{request.precision}", 0, 0)
    if len(parts) > 1:
        graphs = write_pair(request)
    else:
        graphs = {"": write_graph(request, models[""], lacking(platform, OPERATORS))}
    profile, (sparse, _) = Profile.parse(options.profile).of(task), two_of_four_in(models.values())
    how = _how(request, sparse > 0)
    all_ports = {part: ports(model) for part, model in models.items()}
    gc.collect()  # graphs are full of cycles, and would keep the float weights mapped beside the builder's memory
    dimensions = {
        part: {name: port.dimensions for name, port in inputs.items()} for part, (inputs, _) in all_ports.items()
    }
    (folder / PROFILES).write_text(profile.record(dimensions), encoding="utf-8")
    shapes = {part: profile.shapes(own) for part, own in dimensions.items()}
    copy_configuration(request.checkpoint.path, folder)
    files = [within(part, name) for part in parts for name in (MODEL, DATA) if (folder / part / name).is_file()]
    onnx_bytes = sum((folder / name).stat().st_size for name in files)
    told: dict[str, Any] = {
        "parsed": None, "parsed_by": None, "refused": [],
        "built_by": None, "engine_bytes": None, "onnx_bytes": onnx_bytes, "engine_over_onnx": None,
        "capabilities": list(how.capabilities) or None, "hardware_compatible": how.hardware_compatible,
        "version_compatible": how.version_compatible, "profile": options.profile,
        "two_of_four_layers": sparse, "sparse_tactics": how.sparse, "sparse_layers": None, "layers": None,
        "kept_float": [within(part, line) for part, graph in graphs.items() for line in graph.kept_float],
        "int8_share": share(graph.products for graph in graphs.values()),
        "seconds": together(graph.seconds for graph in graphs.values()),
    }  # fmt: skip
    try:
        for part, model in models.items():
            with _of(part):
                _check(model)
        if options.engine:
            engines = []
            for part, model in models.items():
                with _of(part):
                    engines.append(build(platform, model, shapes[part], how, model.parent, request.progress))
            built = as_one(engines)
            told |= built | {"seconds": told["seconds"] | built["seconds"], "parsed": True, "parsed_by": str(platform)}
            told["engine_over_onnx"] = told["engine_bytes"] / onnx_bytes
            files = [within(part, PLAN) for part in parts]
        else:
            for part, model in models.items():
                with _of(part):
                    told |= _parsed(platform, model)
    except BuildError as error:
        error.build = told | (error.build or {})
        raise
    for part, (inputs, outputs) in all_ports.items():
        (folder / part / REBUILD).write_text(rebuild_command(platform, shapes[part], how), encoding="utf-8")
        (folder / part / RUN).write_text(run_command(platform, dimensions[part], profile), encoding="utf-8")
        write_repository(folder, request.checkpoint.source, platform, inputs, outputs, part)
    if len(parts) > 1:
        for name in (REBUILD, RUN):
            (folder / name).write_text(both_command(name, parts), encoding="utf-8")
    there = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    extras = sorted(name for name in there if name not in (*files, *_SHIPPED))
    notes = dict.fromkeys(note for graph in graphs.values() for note in graph.notes)
    return Exported(tuple(files), tuple(notes), tuple(extras), told)


@contextmanager
def _of(part: str) -> Iterator[None]:
    """Says of which graph an error is, where there are two."""
    try:
        yield
    except BuildError as error:
        if not part:
            raise
        named = BuildError(f"the {part}: {error}")
        named.build = error.build
        raise named from error


def _how(request: ExportRequest, sparse: bool) -> How:
    options, cache = request.options, request.cache
    named = options.compute_capability if isinstance(options, RtxOptions) else ()
    wide = isinstance(options, TensorrtOptions)
    return How(
        exact_float32=request.precision == "fp32",
        capabilities=named,
        hardware_compatible=wide and options.hardware_compatible,
        version_compatible=wide and options.version_compatible,
        workspace=options.workspace,
        timing_cache=cache and cache / "tensorrt",
        sparse=sparse and request.precision != "fp32",  # sparse tensor cores take TF32, and float32 without it is exact
    )


def _check(model_onnx: Path) -> None:
    """Raises BuildError for what the lint knows to be refused."""
    if lines := refused(model_onnx):
        message = f"TensorRT refuses {len(lines)} things of the graph: {'; '.join(lines)}"
        raise failed("exporter's lint", message, lines)


def _parsed(platform: Platform, model_onnx: Path) -> dict[str, Any]:
    """What a parser at hand says of a graph without an engine."""
    able = [one for one in (platform, RTX) if can_parse(one)]
    if not able:
        return {}
    parse(able[0], model_onnx, Log(able[0].load()))
    return {"parsed": True, "parsed_by": str(able[0])}


def check(config: Mapping[str, Any], task: str, precision: str) -> str | None:
    if (reason := of_one_text_or_picture(task, "TensorRT")) is not None:
        return reason
    if config.get("is_encoder_decoder") and not FORMS[task].encodes:
        return f"an encoder-decoder is exported to TensorRT for {TEXT2TEXT}, and not for {task}"
    return refused_cache(config) if task == GENERATION else None


def prepare(platform: Platform, wanted: Preparation) -> str | None:
    """Checks the options against the task and the installed package, and whether an engine can be built here."""
    options: EngineOptions = wanted.options
    Profile.parse(options.profile).of(wanted.task).check(wanted.task, wanted.window, f"--{platform.package}-profile")
    if isinstance(options, RtxOptions):
        _check_capabilities(platform, options.compute_capability)
    return _cannot_build(platform) if options.engine else None


def _check_capabilities(platform: Platform, names: Sequence[str]) -> None:
    """Raises JobError for a capability that the installed package does not know."""
    known = capabilities(platform.load()) if find_spec(platform.module) else None
    for name in names:
        if known is not None and name not in known:
            raise JobError(f"--{platform.package}-compute-capability: {unknown('compute capability', name, known)}")


def _cannot_build(platform: Platform) -> str | None:
    if platform.ahead_of_time:
        return None
    version = platform.version() or "0"
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < OLDEST:
        newer = install_command(platform.package, [platform.package], "-U")
        return f"tensorrt {version} is older than {'.'.join(map(str, OLDEST))}; {newer}"
    if not count():
        return (
            "TensorRT builds on the GPU that the engine is for, and there is no CUDA device; --target tensorrt-rtx "
            "builds without one, and --no-tensorrt-engine makes the graph, its profile and its proof alone"
        )
    return None


def _without(platform: Platform) -> str:
    return f"no engine was built (--no-{platform.package}-engine)"


def open_folder(platform: Platform, folder: Path, threads: int, gpu: int | None = None) -> Any:
    """The engines on a GPU, by its number; without one that can run them, the graphs on the CPU, which say why."""
    task = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["task"]
    profile, parts = Profile.read((folder / PROFILES).read_text(encoding="utf-8")), parts_of(task)
    built = all((folder / part / PLAN).is_file() for part in parts)
    untimed = cannot_run(platform, gpu) if built else _without(platform)
    if untimed is not None:
        return open_stand_in(folder, threads, profile, task, untimed)
    if len(parts) > 1:
        return open_engines(folder, platform, profile, gpu or 0)
    return open_engine(folder, platform, profile, task == GENERATION, gpu or 0)


TENSORRT_TARGET = Target(
    name=TENSORRT.package,
    summary="NVIDIA TensorRT: datacenter and workstation GPUs, Triton",
    precisions=PRECISIONS,
    default="fp16",
    with_torch=True,
    requires=("onnx", "onnx_ir", "onnxruntime", "torch"),
    builds_with=lambda options: (TENSORRT.module,) if options.engine else (),
    extra="tensorrt",
    instead=(
        ", with NVIDIA's own package index as --extra-index-url, where its libraries are; or build for RTX GPUs "
        "instead, with --target tensorrt-rtx; --no-tensorrt-engine makes the graph alone and needs neither"
    ),
    check=check,
    export=partial(export, TENSORRT),
    open=partial(open_folder, TENSORRT),
    open_cuda=partial(open_folder, TENSORRT),
    lacks_cuda=lambda precision, task: cannot_run(TENSORRT),
    weights=lambda folder, files: weights_in(folder),
    zeros=zeros_of,
    run="sh {folder}/run.sh",
    kit=kit("tensorrt"),
    options=TensorrtOptions,
    prepare=partial(prepare, TENSORRT),
    calibrates=lambda precision, options: precision in ("fp16", "int8", "int8-weight"),  # float16's overflow too
    schemes=cannot_express,
    experts=True,
    convolutions=True,
)

RTX_TARGET = replace(
    TENSORRT_TARGET,
    name=RTX.package,
    summary="NVIDIA TensorRT-RTX: GeForce RTX and RTX PRO GPUs; builds without a GPU",
    builds_with=lambda options: (RTX.module,) if options.engine else (),
    extra="tensorrt-rtx",
    options=RtxOptions,
    instead="",
    export=partial(export, RTX),
    open=partial(open_folder, RTX),
    open_cuda=partial(open_folder, RTX),
    lacks_cuda=lambda precision, task: cannot_run(RTX),
    prepare=partial(prepare, RTX),
)
