"""What is in an .mlpackage, as plain data: nothing is decoded, and no operator need be known."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from exporter.targets.coreml.mil.operators import OPERATORS, READ, WRITE
from exporter.targets.coreml.mil.package import Package, open_package
from exporter.targets.coreml.mil.program import Function, function_names, read_function
from exporter.targets.coreml.mil.values import Type, stored_size


def inspect(path: Path) -> dict[str, Any]:
    """Functions with their inputs, outputs, states and operators; bytes of constants by the type they are stored in.

    Sizes that are known only when it runs are None. Constants that functions share are counted once. Raises BuildError
    for what is damaged, and MissingPackage without coremltools.
    """
    package = open_package(path)
    functions = [read_function(package, name) for name in function_names(package)]
    description = package.specification.description
    return {
        "format": "mlpackage",
        "specification_version": package.specification.specificationVersion,
        "functions": [_function(function) for function in functions],
        "bytes": _bytes(package, functions),
        "metadata": {
            "author": description.metadata.author,
            "license": description.metadata.license,
            "description": description.metadata.shortDescription,
            "version": description.metadata.versionString,
            **dict(sorted(description.metadata.userDefined.items())),
        },
    }


def _function(function: Function) -> dict[str, Any]:
    counts = Counter(operation.kind for operation in function.operations)
    known = {*OPERATORS, "const", READ, WRITE}
    return {
        "name": function.name,
        "inputs": _types(function.inputs),
        "outputs": _types(function.output_types()),
        "states": _types(function.states),
        "operators": dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        "not_evaluated": sorted(counts.keys() - known),  # operators that the reference evaluator lacks
    }


def _types(types: dict[str, Type]) -> list[dict[str, Any]]:
    return [{"name": name, "type": kind.kind, "shape": list(kind.shape)} for name, kind in types.items()]


def _bytes(package: Package, functions: list[Function]) -> dict[str, int]:
    """By the stored type, largest first; a tensor in the weight file counts once, however many functions read it."""
    sizes: Counter[str] = Counter()
    seen: set[tuple[str, int]] = set()
    for function in functions:
        for operation in function.operations:
            for message in operation.constants():
                if message.WhichOneof("value") == "blobFileValue":
                    place = (message.blobFileValue.fileName, message.blobFileValue.offset)
                    if place in seen:
                        continue
                    seen.add(place)
                kind, size = stored_size(message, package)
                sizes[kind] += size
    return dict(sizes.most_common())
