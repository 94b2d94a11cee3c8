"""A function made ready to run: what depends on constants alone is computed once, and memory is given back early."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from exporter.errors import BuildError
from exporter.targets.coreml.mil.blob import DTYPES, PACKED, Array
from exporter.targets.coreml.mil.operators import OPERATORS, READ, RENAMED, TUPLES, WRITE
from exporter.targets.coreml.mil.package import Package
from exporter.targets.coreml.mil.program import Constant, Function, Operation
from exporter.targets.coreml.mil.rounding import round_to_half
from exporter.targets.coreml.mil.values import FLOATS, Type, read_value

Values = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """An operator with its constants. `names`: its other arguments by parameter, several as a tuple of name and value.

    `owned`: a slice_update that may write into the state's own memory. `frees`: what nothing reads after it.
    """

    operation: Operation
    run: Callable[..., Any] | None
    rounds: bool
    constants: Values
    names: dict[str, str]
    tuples: dict[str, tuple[tuple[str | None, Any], ...]]
    owned: bool = False
    frees: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """`known`: outputs of the function that are constants."""

    function: Function
    steps: tuple[Step, ...]
    known: Values


class Compiler:
    """Makes plans of one package's functions, which share the constants that they share in the weight file."""

    def __init__(self, package: Package, half: bool) -> None:
        self._package, self._half = package, half
        self._stored: dict[tuple[str, int], Array] = {}

    def plan(self, function: Function) -> Plan:
        """Raises BuildError for operators and parameters that are not known, and for damaged constants."""
        self._check(function)
        known: Values = {}
        left: list[Operation] = []
        for operation in function.operations:
            if operation.kind == "const":
                [constant] = operation.inputs["val"]
                known[operation.outputs[0][0]] = self._constant(constant)
            elif operation.kind not in (READ, WRITE) and all(name in known for name in operation.names()):
                known |= computed(self._step(operation, known), {}, self._half)
            else:
                left.append(operation)
        owned = owned_updates(left, function.outputs)
        frees = _last_reads(left, function.outputs)
        steps = tuple(self._step(op, known, at in owned, tuple(frees[at])) for at, op in enumerate(left))
        return Plan(function, steps, {name: known[name] for name in function.outputs if name in known})

    def value(self, name: str, makers: Mapping[str, Operation]) -> Any:
        """A constant by its name, of what `makers` has by its outputs' names; as the operators take it."""
        operation = makers[name]
        if operation.kind == "const":
            [constant] = operation.inputs["val"]
            return self._constant(constant)
        known = {one: self.value(one, makers) for one in operation.names()}
        return computed(self._step(operation, known), {}, self._half)[name]

    def _check(self, function: Function) -> None:
        """What is not known is told with all its names, before anything is computed."""
        kinds = {operation.kind for operation in function.operations}
        missing = sorted(kinds - OPERATORS.keys() - {"const", READ, WRITE})
        if missing:
            what = "an operator" if len(missing) == 1 else "operators"
            raise BuildError(f"{self._package.path} has {what} that cannot be evaluated: {', '.join(missing)}")
        for operation in function.operations:
            if operation.kind in OPERATORS:
                given = dict.fromkeys(RENAMED.get(name, name) for name in operation.inputs)
                try:
                    inspect.signature(OPERATORS[operation.kind].run).bind(**given)
                except TypeError as error:
                    raise BuildError(f"{self._package.path}: {operation} cannot be evaluated: {error}") from error

    def _constant(self, constant: Any) -> Any:
        """As the operators take it: floats as float32, a text as str, what stands alone as NumPy's scalar."""
        message = constant.message
        stored = message.WhichOneof("value") == "blobFileValue"
        key = (message.blobFileValue.fileName, message.blobFileValue.offset)
        if not stored or key not in self._stored:
            found = read_value(message, self._package)
            if isinstance(found, (np.ndarray, np.floating)) and found.dtype.kind == "f":
                found = found.astype(np.float32, copy=False)
            if not stored:
                return found
            self._stored[key] = found
        return self._stored[key]

    def _step(self, operation: Operation, known: Values, owned: bool = False, frees: tuple[str, ...] = ()) -> Step:
        constants: Values = {}
        names: dict[str, str] = {}
        tuples: dict[str, tuple[tuple[str | None, Any], ...]] = {}
        for parameter, arguments in operation.inputs.items():
            bound: list[tuple[str | None, Any]] = []
            for argument in arguments:
                if isinstance(argument, Constant):
                    bound.append((None, self._constant(argument)))
                else:
                    bound.append((None, known[argument]) if argument in known else (argument, None))
            name = RENAMED.get(parameter, parameter)
            if parameter in TUPLES:
                tuples[name] = tuple(bound)
            elif bound[0][0] is None:
                constants[name] = bound[0][1]
            else:
                names[name] = bound[0][0]
        rule = OPERATORS.get(operation.kind)
        run, rounds = (rule.run, rule.rounds) if rule else (None, False)
        return Step(operation, run, rounds, constants, names, tuples, owned, frees)


def bound(step: Step, values: Values) -> Values:
    """An operator's arguments by parameter."""
    found = dict(step.constants)
    for parameter, name in step.names.items():
        found[parameter] = values[name]
    for parameter, items in step.tuples.items():
        found[parameter] = [value if name is None else values[name] for name, value in items]
    return found


def computed(step: Step, values: Values, half: bool) -> Values:
    """Runs an operator: its outputs by name, of their declared types; float16 rounded in `half`."""
    assert step.run is not None
    arguments = bound(step, values)
    if step.owned:
        arguments["owned"] = True
    try:
        found = step.run(**arguments)
        outputs = found if isinstance(found, (tuple, list)) else [found]
        return {
            name: declared(output, kind, half and step.rounds)
            for output, (name, kind) in zip(outputs, step.operation.outputs, strict=True)
        }
    except (ValueError, IndexError, TypeError) as error:
        error.add_note(f"in the MIL operator {step.operation}")
        raise


def declared(value: Any, kind: Type, rounds: bool) -> Array:
    """A result as its type says: every float as float32, rounded to float16's numbers where that is declared."""
    if kind.kind in FLOATS:
        found: Array = np.asarray(value, np.float32)
        if rounds and kind.kind == "fp16":
            round_to_half(found)
    else:
        whole = "bool" if kind.kind == "bool" else DTYPES.get(kind.kind, "u1" if kind.kind in PACKED else "i4")
        found = np.asarray(value).astype("i1" if kind.kind == "int4" else whole, copy=False)
    sizes = found.shape
    if len(sizes) != len(kind.shape) or any(b is not None and a != b for a, b in zip(sizes, kind.shape, strict=True)):
        raise ValueError(f"a result of shape {list(sizes)} is declared as {kind}")
    return found


def _last_reads(operations: list[Operation], outputs: Iterable[str]) -> list[list[str]]:
    """By operator, what nothing reads after it."""
    last: dict[str, int] = {}
    for at, operation in enumerate(operations):
        last |= dict.fromkeys([*operation.names(), *(name for name, _ in operation.outputs)], at)
    frees: list[list[str]] = [[] for _ in operations]
    for name, at in last.items():
        if name not in outputs:
            frees[at].append(name)
    return frees


def owned_updates(operations: list[Operation], outputs: Iterable[str]) -> set[int]:
    """Which slice_updates may write into the memory of the state that they read.

    A KV cache would be copied for every layer and token otherwise. It may be where the result is what the state gets
    next, and nothing that may share the state's memory is read later.
    """
    last: dict[str, int] = dict.fromkeys(outputs, len(operations))
    for at, operation in enumerate(operations):
        for name in operation.names():
            last[name] = max(last.get(name, 0), at)
    shares: dict[str, str] = {}  # by name, the state whose memory it may share
    found = set()
    for at, operation in enumerate(operations):
        results = [name for name, _ in operation.outputs]
        read = [name for name in operation.names() if name in shares]
        if operation.kind == READ:
            [state] = operation.names()
            shares[results[0]] = state
        elif operation.kind == "slice_update":
            state = shares.get(str(operation.inputs["x"][0]), "")
            alive = any(shares[name] == state and last.get(name, 0) > at for name in shares)
            if state and not alive and _written_next(operations[at + 1 :], state) == results[0]:
                found.add(at)
                shares[results[0]] = state
        elif operation.kind in OPERATORS and OPERATORS[operation.kind].shares:
            shares |= {result: shares[name] for result in results for name in read}
    return found


def _written_next(operations: list[Operation], state: str) -> str | None:
    """What is written into a state before it is read again."""
    for operation in operations:
        if operation.kind == WRITE and operation.inputs["input"][0] == state:
            return str(operation.inputs["data"][0])
        if operation.kind == READ and operation.inputs["input"][0] == state:
            return None
    return None
