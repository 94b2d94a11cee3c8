"""Runs an ML program: float32 arithmetic throughout, or the declared float16 emulated.

Every float is held as float32. Emulated, an operator whose result is declared float16 computes in float32, sums
included, and its result is rounded to float16: what the specification says of the result, and as precise as Apple's
devices may be inside an operator. Constants are float16's numbers in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from exporter.targets.coreml.mil.blob import Array
from exporter.targets.coreml.mil.compiling import Compiler, Plan, Step, Values, computed, declared
from exporter.targets.coreml.mil.operators import READ
from exporter.targets.coreml.mil.package import open_package
from exporter.targets.coreml.mil.program import function_names, read_function
from exporter.targets.coreml.mil.threads import keep_memory

States = dict[str, Array]
Watch = Callable[[str, Array], None]


class Evaluator:
    """An opened .mlpackage and all its functions.

    Raises BuildError where it is damaged or has operators that are not known; MissingPackage without coremltools,
    whose messages it is read by.
    """

    def __init__(self, path: Path, half: bool) -> None:
        keep_memory()
        package = open_package(path)
        compiler = Compiler(package, half)
        self.specification: Any = package.specification
        self._half = half
        with np.errstate(all="ignore"):
            self.plans: dict[str, Plan] = {
                name: compiler.plan(read_function(package, name)) for name in function_names(package)
            }
        self.default = next(iter(self.plans))

    def new_states(self, function: str | None = None) -> States:
        """Its states by name, all zero, as Core ML makes them."""
        types = self.plans[function or self.default].function.states
        return {
            name: declared(np.zeros([size or 0 for size in kind.shape], np.float32), kind, rounds=False)
            for name, kind in types.items()
        }

    def run(
        self,
        feeds: Mapping[str, Any],
        states: States | None = None,
        function: str | None = None,
        watch: Watch | None = None,
    ) -> dict[str, Array]:
        """Outputs by name for all of a function's inputs; `states` are changed. `watch` sees each result by its name.

        Raises ValueError for inputs that are missing or of another shape than declared.
        """
        plan = self.plans[function or self.default]
        inputs = plan.function.inputs
        if feeds.keys() != inputs.keys():
            raise ValueError(f"the function {plan.function.name} takes {', '.join(inputs)}, not {', '.join(feeds)}")
        values: Values = {}
        for name, kind in inputs.items():  # copied: where it is rounded, the caller's array stays the caller's
            values[name] = declared(np.array(feeds[name]), kind, self._half)
        held = {} if states is None else states
        with np.errstate(all="ignore"):
            for step in plan.steps:
                found = computed(step, values, self._half) if step.run else self._state(step, values, held)
                values |= found
                if watch is not None:
                    for name, value in found.items():
                        watch(name, value)
                for name in step.frees:
                    values.pop(name, None)
        values |= plan.known
        return {name: _apart(values[name], held) for name in plan.function.outputs}

    def _state(self, step: Step, values: Values, states: States) -> Values:
        """Reads or writes a state: what is read is its own memory, and what is written another's is copied."""
        state = step.names["x"]
        if step.operation.kind == READ:
            return {step.operation.outputs[0][0]: states[state]}
        given = step.constants["data"] if "data" in step.constants else values[step.names["data"]]
        if states[state] is not given:
            states[state] = np.array(given)
        return {}


def _apart(output: Array, states: States) -> Array:
    """An output that no later prediction changes."""
    return np.array(output) if any(np.may_share_memory(output, state) for state in states.values()) else output
