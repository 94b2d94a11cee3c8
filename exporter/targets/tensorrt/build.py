"""An ONNX file to an engine: parsed and built by TensorRT's or TensorRT-RTX's own parser and builder.

Networks are strongly typed: every precision is in the graph, and the builder gets no precision flags.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from exporter.errors import BuildError
from exporter.targets.tensorrt.log import (
    Log,
    Progress,
    count_layers,
    layers_of_inspector,
    layers_of_log,
    monitor,
)
from exporter.targets.tensorrt.platform import Platform, cannot_run, capabilities, open_parser
from exporter.targets.tensorrt.profile import Shapes

PLAN, LOG, LAYERS = "model.plan", "build.log", "layers.json"


@dataclass(frozen=True)
class How:
    """What a job says of an engine. `capabilities`: such as sm89; none: what TensorRT-RTX takes by itself."""

    exact_float32: bool  # no TF32, which has float16's mantissa
    capabilities: tuple[str, ...] = ()
    hardware_compatible: bool = False
    version_compatible: bool = False
    workspace: int | None = None  # bytes
    timing_cache: Path | None = None  # the folder that keeps them
    sparse: bool = False  # sparse tactics are allowed: the builder looks at the weights and times them beside the dense


def parse(platform: Platform, model_onnx: Path, log: Log) -> tuple[Any, Any]:
    """The builder and the network of a file; it is read from its place, so that external data is found.

    Raises BuildError that names each operator that the parser refuses.
    """
    trt = platform.load()
    builder = _builder(platform, trt, log)
    network, parser = open_parser(trt, builder, log.logger)
    if not parser.parse_from_file(str(model_onnx)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        said = [f"{one.node_operator()} ({one.node_name()}): {one.desc()}" for one in errors]
        raise failed(
            str(platform), f"{platform}'s parser refuses the graph: {'; '.join(said) or log.last_lines()}", said
        )
    return builder, network


def failed(by: str, message: str, refused: Sequence[str] | None = None) -> BuildError:
    """With the report's fields of a graph that was read `by` a parser. `refused`: what it says; None: it took it."""
    error = BuildError(message)
    error.build = {"parsed": refused is None, "parsed_by": by, "refused": list(refused or ())}
    return error


def _builder(platform: Platform, trt: Any, log: Log) -> Any:
    try:
        return trt.Builder(log.logger)
    except TypeError as error:  # pybind11's, for a null pointer: TensorRT's builder is none without a GPU
        raise BuildError(f"{platform} has no builder here: {log.last_lines()}") from error


def build(
    platform: Platform, model_onnx: Path, shapes: Mapping[str, Shapes], how: How, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Writes model.plan, build.log and layers.json into `folder`; returns the report's fields of the engine.

    Raises BuildError with the last lines of the builder's log.
    """
    trt = platform.load()
    log = Log(trt, folder / LOG)
    start = perf_counter()
    builder, network = parse(platform, model_onnx, log)
    parsed = perf_counter()
    config = builder.create_builder_config()
    watch = monitor(trt, f"building {folder.name.strip('.').split('.')[0]}", progress)
    config.progress_monitor = watch
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if how.exact_float32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if how.sparse:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if how.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, how.workspace)
    _for_which_gpus(trt, config, how)
    if not _add_profile(builder, config, network, shapes):
        raise failed(str(platform), f"the builder does not take the profile {dict(shapes)}")
    timings = _read_timings(platform, config, how)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        more = f"; allow more with --{platform.package}-workspace" if how.workspace is not None else ""
        raise failed(str(platform), f"{platform} could not build the engine: {log.last_lines()}{more}")
    if timings is not None:
        _write_timings(config, timings)
    with (folder / PLAN).open("wb") as file:
        file.write(memoryview(plan))
    built = perf_counter()
    return {
        "built_by": str(platform),
        "engine_bytes": int(plan.nbytes),
        "layers": _layers(platform, log, folder, shapes),
        "sparse_layers": log.sparse_layers(),
        "seconds": {"parse": parsed - start, "build": built - parsed},
    }


def _for_which_gpus(trt: Any, config: Any, how: How) -> None:
    if how.capabilities:
        known = capabilities(trt)
        config.num_compute_capabilities = len(how.capabilities)
        for index, name in enumerate(how.capabilities):
            config.set_compute_capability(known[name], index)
    if how.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if how.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)


def _add_profile(builder: Any, config: Any, network: Any, shapes: Mapping[str, Shapes]) -> bool:
    profile = builder.create_optimization_profile()
    inputs = [network.get_input(index).name for index in range(network.num_inputs)]
    for name in inputs:
        profile.set_shape(name, *shapes[name])
    return bool(config.add_optimization_profile(profile) >= 0)


def _read_timings(platform: Platform, config: Any, how: How) -> Path | None:
    """Gives the builder the timings of earlier builds; the file for this one's. TensorRT-RTX times nothing."""
    if platform.ahead_of_time or how.timing_cache is None:
        return None
    import torch

    gpu = torch.cuda.get_device_name().replace(" ", "-") if torch.cuda.is_available() else "unknown"
    file = how.timing_cache / f"{platform.package}-{platform.version()}-{gpu}.timing"
    cache = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
    if not config.set_timing_cache(cache, ignore_mismatch=False):  # of another driver, say: begin anew
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    return file


def _write_timings(config: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}.new")
    new.write_bytes(memoryview(config.get_timing_cache().serialize()))
    new.replace(file)


def _layers(platform: Platform, log: Log, folder: Path, shapes: Mapping[str, Shapes]) -> dict[str, Any] | None:
    """What the engine's layers are: from its inspector where it can be opened, else from the builder's own words."""
    if cannot_run(platform) is None:
        layers, source = layers_of_inspector(_inspected(platform, log, folder / PLAN, shapes)), "the engine's inspector"
    else:
        layers, source = layers_of_log(log.layers_text), "the builder's log"
    if not layers:
        return None
    (folder / LAYERS).write_text(json.dumps(layers, indent=1) + "\n", encoding="utf-8")
    return count_layers(layers, source)


def _inspected(platform: Platform, log: Log, plan: Path, shapes: Mapping[str, Shapes]) -> dict[str, Any]:
    """What the inspector says of the layers at the sizes that the profile is tuned for: without sizes, no types."""
    trt = platform.load()
    engine = trt.Runtime(log.logger).deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        return {"Layers": []}  # made for another GPU than this machine's
    context = engine.create_execution_context()
    for name, (_, tuned, _) in shapes.items():
        context.set_input_shape(name, tuned)
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    described: dict[str, Any] = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    return described
