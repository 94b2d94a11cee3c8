"""The targets there are: the built-in table, and third parties' by the entry point group `exporter.targets`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from types import MappingProxyType

from exporter.errors import JobError, MissingPackage, unknown
from exporter.targets.onnx import ONNX
from exporter.targets.torch import TORCH
from exporter.types import Target, Variant

BUILTIN = {target.name: target for target in (TORCH, ONNX)}
GROUP = "exporter.targets"
REFERENCE = Variant("torch", "fp32")


@cache
def all_targets() -> Mapping[str, Target]:
    """Built-in and installed targets by name. Raises JobError for a broken or clashing third-party target."""
    found = dict(BUILTIN)
    for point in metadata.entry_points(group=GROUP):
        try:
            target = point.load()
        except ImportError as error:
            raise JobError(f"the target {point.name} ({point.value}) cannot be imported: {error}; uninstall or mend it") from error
        if not isinstance(target, Target) or target.name != point.name:
            raise JobError(f"the entry point {point.name} ({point.value}) is not an exporter.types.Target of that name")
        if point.name in BUILTIN:
            raise JobError(f"the installed target {point.name} ({point.value}) has a built-in target's name; uninstall it")
        found[point.name] = target
    return MappingProxyType(found)


def get(name: str) -> Target:
    """The target of that name. Raises JobError with the nearest names."""
    if name not in all_targets():
        raise JobError(unknown("target", name, all_targets()))
    return all_targets()[name]


def parse(text: str, task: str) -> list[Variant]:
    """The variants that TARGET, TARGET:PRECISION, TARGET:all or all mean for a task. Raises JobError with the nearest names."""
    if text == "all":
        return [variant for name in all_targets() for variant in parse(name, task)]
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


def missing(target: Target, precision: str) -> MissingPackage | None:
    """The error for the packages that a target's precision needs and this environment lacks."""
    required = (*target.requires, *target.precisions[precision].requires)
    absent = [name.replace("_", "-") for name in required if find_spec(name) is None]
    return MissingPackage(f"{target.name}:{precision}", absent, target.extra) if absent else None


def unavailable(variant: Variant) -> str | None:
    """Why a variant cannot be built here, with the command that mends it, or None."""
    target = get(variant.target)
    absent = missing(target, variant.precision)
    return str(absent) if absent else target.available()
