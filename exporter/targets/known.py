"""The targets there are: the built-in table, and third parties' by the entry point group `exporter.targets`.

A third party's target that cannot be used is listed with its reason, and troubles only those who ask for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from types import MappingProxyType

from pydantic import BaseModel

from exporter.device import gpu_number, was_asked
from exporter.errors import BuildError, ExporterError, JobError, MissingPackage, unknown
from exporter.job import Job
from exporter.scheme import Scheme
from exporter.targets.coreml.target import COREML
from exporter.targets.gguf.target import GGUF
from exporter.targets.litert.target import LITERT
from exporter.targets.onnx.one_layer import layer_run as onnx_layer
from exporter.targets.onnx.target import ONNX
from exporter.targets.tensorrt.target import RTX_TARGET, TENSORRT_TARGET
from exporter.targets.torch.one_layer import layer_run as torch_layer
from exporter.targets.torch.target import TORCH
from exporter.types import Target, Variant

BUILTIN = {target.name: target for target in (TORCH, ONNX, GGUF, TENSORRT_TARGET, RTX_TARGET, COREML, LITERT)}
GROUP = "exporter.targets"
REFERENCE = Variant("torch", "fp32")
# Of a layer [N, K] and its scheme, copies and threads: what runs them once on so many rows (--policy-cost latency).
LayerRun = Callable[[tuple[int, int], Scheme | None, int, int], Callable[[int], object]]
LAYER_RUNS: Mapping[str, LayerRun] = {"onnx": onnx_layer, "torch": torch_layer}
UNKNOWN = "unknown"  # the precision of a broken target's row under `all`


@cache
def _installed() -> tuple[Mapping[str, Target], Mapping[str, str]]:
    """Third parties' targets by name, and why the others cannot be used."""
    found: dict[str, Target] = {}
    broken: dict[str, str] = {}
    points = list(metadata.entry_points(group=GROUP))
    for point in points:
        owner = point.dist.name if point.dist else point.value
        if point.name in BUILTIN:
            broken[point.name] = f"{owner} brings a target of this built-in name; it is not used: pip uninstall {owner}"
        elif (rivals := [other.value for other in points if other.name == point.name])[1:]:
            broken[point.name] = f"several packages bring it ({', '.join(rivals)}): uninstall all but one"
        else:
            target = _load(point)
            if isinstance(target, Target):
                found[point.name] = target
            else:
                broken[point.name] = f"{target}; mend it or: pip uninstall {owner}"
    return MappingProxyType(found), MappingProxyType(broken)


def _load(point: metadata.EntryPoint) -> Target | str:
    """An entry point's target, or why it is none."""
    try:
        target = point.load()
    except Exception as error:  # noqa: BLE001  # a stranger's module may raise anything when it is imported
        return f"{point.value} cannot be imported ({type(error).__name__}: {error})"
    if not isinstance(target, Target) or target.name != point.name:
        return f"{point.value} is not an exporter.types.Target named {point.name!r}"
    if target.default not in target.precisions:
        return f"the default of {point.value}, {target.default!r}, is none of its precisions"
    return _wrong_options(target) or target


def _wrong_options(target: Target) -> str | None:
    """Why a third party's options cannot be flags and a section of every job, or None."""
    options: object = target.options
    if options is None:
        return None
    if not (isinstance(options, type) and issubclass(options, BaseModel)):
        return f"the options of {target.name} are {options!r}, not a subclass of pydantic's BaseModel"
    taken = {target.name, *(f"{target.name}_{name}" for name in options.model_fields)} & set(Job.model_fields)
    if taken:
        return f"the options of {target.name} would take the place of {sorted(taken)[0]!r}, a key of every job"
    try:
        options()
        options.model_json_schema()
    except Exception as error:  # noqa: BLE001  # a stranger's validators may raise anything
        return f"the options of {target.name} have no defaults that hold: {' '.join(str(error).split())}"
    return None


def all_targets() -> Mapping[str, Target]:
    """The targets that can be used, by name: built-in and installed ones."""
    return MappingProxyType({**BUILTIN, **_installed()[0]})


def broken() -> Mapping[str, str]:
    """Why installed targets cannot be used, by name. A built-in name stands for a third party's claim to it."""
    return _installed()[1]


def get(name: str) -> Target:
    """The target of that name. Raises JobError with the nearest names, or BuildError for a broken one."""
    usable = all_targets()
    if name in usable:
        return usable[name]
    if name in broken():
        raise BuildError(f"the target {name} cannot be used: {broken()[name]}")
    raise JobError(unknown("target", name, [*usable, *broken()]))


def parse(text: str, task: str) -> list[Variant]:
    """The variants that TARGET, TARGET:PRECISION, TARGET:all or all mean for a task.

    Raises JobError with the nearest names.
    """
    if text == "all":
        usable = [variant for name in all_targets() for variant in parse(name, task)]
        return usable + [Variant(name, UNKNOWN) for name in broken() if name not in BUILTIN]
    name, _, precision = text.partition(":")
    target = get(name)
    precision = precision or target.default
    if precision == "all":
        return [Variant(name, one) for one in target.precisions]
    if precision in target.aliases:
        precision = target.aliases[precision][task]
    if precision not in target.precisions:
        raise JobError(unknown(f"precision of {name}", precision, [*target.precisions, *target.aliases, "all"]))
    return [Variant(name, precision)]


def defaults(target: Target) -> BaseModel | None:
    """The options of a target in a job that says nothing of them; None where it has none."""
    return None if target.options is None else target.options()


def missing(
    target: Target, precision: str, options: BaseModel | None = None, to_open: bool = False
) -> MissingPackage | None:
    """The error for the packages that a target's precision needs and this environment lacks.

    `options`: of the job that exports, the defaults unless given; `to_open`: an artifact that is there is only opened.
    """
    required = [*target.requires, *target.precisions[precision].requires]
    required += [] if to_open else target.builds_with(options or defaults(target))
    absent = [name.replace("_", "-") for name in required if not _importable(name)]
    return MissingPackage(f"{target.name}:{precision}", absent, target.extra, target.instead) if absent else None


def placed(variant: Variant, device: str, task: str) -> tuple[int | None, str | None]:
    """The GPU that a variant of a task is opened on, None: the CPU; and why it is not the GPU that `device` means.

    A target that has no engine for GPUs needs no reason under `auto`. Raises JobError for a GPU that is not there.
    """
    number = gpu_number(device)
    if number is None:
        return None, None
    target = get(variant.target)
    if target.open_cuda is None:
        return None, f"{target.name} has no engine for CUDA" if was_asked(device) else None
    lacks = target.lacks_cuda(variant.precision, task)
    return (number, None) if lacks is None else (None, lacks)


def _importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a.b, where there is no a
        return False


def unavailable(variant: Variant, options: BaseModel | None = None, to_open: bool = False) -> str | None:
    """Why a variant cannot be built, or only opened, here, with the command that mends it, or None."""
    try:
        target = get(variant.target)
    except ExporterError as error:
        return str(error)
    absent = missing(target, variant.precision, options, to_open)
    return str(absent) if absent else target.available()
