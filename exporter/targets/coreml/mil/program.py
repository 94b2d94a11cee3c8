"""The functions of an ML program and their operators, as plain data: names, types, and messages of constants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from exporter.errors import BuildError, unknown
from exporter.targets.coreml.mil.package import Package
from exporter.targets.coreml.mil.values import Type, read_type


@dataclass(frozen=True)
class Constant:
    """A constant that is not read yet: `message` is a Value of MIL_pb2."""

    message: Any


Argument = str | Constant  # the name of what an operator gave, or a constant


@dataclass(frozen=True)
class Operation:
    """One operator. `inputs`: by parameter, the arguments, of which most have one; `outputs`: names and types."""

    kind: str
    inputs: dict[str, tuple[Argument, ...]]
    outputs: tuple[tuple[str, Type], ...]

    def names(self) -> Iterator[str]:
        """What it reads of other operators and of the function's inputs."""
        for arguments in self.inputs.values():
            yield from (argument for argument in arguments if isinstance(argument, str))

    def constants(self) -> Iterator[Any]:
        """The messages of the constants that are written at the operator itself."""
        for arguments in self.inputs.values():
            yield from (argument.message for argument in arguments if isinstance(argument, Constant))

    def __str__(self) -> str:
        given = " and ".join(f"{name} {kind}" for name, kind in self.outputs)
        return f"{self.kind} -> {given}" if given else self.kind


@dataclass(frozen=True)
class Function:
    """A function's inputs and states by name, its outputs, and its operators in the order they run in."""

    name: str
    inputs: dict[str, Type]
    states: dict[str, Type]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]

    def output_types(self) -> dict[str, Type]:
        """By name; an output may be an input, handed through."""
        given = {name: kind for operation in self.operations for name, kind in operation.outputs}
        return {name: (given | self.inputs)[name] for name in self.outputs}


def function_names(package: Package) -> list[str]:
    """All functions of a package, the one that runs by default first."""
    names = sorted(package.specification.mlProgram.functions)
    default = package.specification.description.defaultFunctionName or "main"
    return sorted(names, key=lambda name: name != default)


def read_function(package: Package, name: str | None = None) -> Function:
    """By its name; without one, the function that runs by default."""
    names = function_names(package)
    chosen = name or names[0]
    if chosen not in names:
        raise BuildError(f"{package.path}: {unknown('function', chosen, names)}")
    message = package.specification.mlProgram.functions[chosen]
    block = message.block_specializations.get(message.opset)
    if block is None:
        raise BuildError(f"{package.path} is damaged: its function {chosen} has no block for {message.opset}")
    inputs: dict[str, Type] = {}
    states: dict[str, Type] = {}
    for value in message.inputs:
        where = states if value.type.WhichOneof("type") == "stateType" else inputs
        where[value.name] = read_type(value.type)
    operations = tuple(_operation(operation) for operation in block.operations)
    _check(package, operations, {*inputs, *states}, block.outputs)
    return Function(chosen, inputs, states, tuple(block.outputs), operations)


def _operation(message: Any) -> Operation:
    inputs = {
        parameter: tuple(
            binding.name if binding.WhichOneof("binding") == "name" else Constant(binding.value)
            for binding in argument.arguments
        )
        for parameter, argument in message.inputs.items()
    }
    # A constant, and what iOS 16 expands, have their arguments among the attributes, with their own names.
    if message.type == "const" or message.type.startswith("constexpr_"):
        attributes = {key: value for key, value in message.attributes.items() if key != "name"}
        inputs |= {parameter: (Constant(value),) for parameter, value in attributes.items()}
    outputs = tuple((value.name, read_type(value.type)) for value in message.outputs)
    return Operation(message.type, inputs, outputs)


def _check(package: Package, operations: tuple[Operation, ...], known: set[str], outputs: list[str]) -> None:
    """Everything that is read was given before."""
    known = set(known)
    for operation in operations:
        missing = [name for name in operation.names() if name not in known]
        if missing:
            raise BuildError(f"{package.path} is damaged: {operation} reads {missing[0]}, which nothing gives")
        known.update(name for name, _ in operation.outputs)
    missing = [name for name in outputs if name not in known]
    if missing:
        raise BuildError(f"{package.path} is damaged: nothing gives its output {missing[0]}")
