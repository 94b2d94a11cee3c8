"""A trace that is used again, for other weights: all of a model's graph but them, in a file.

A policy is tried several times (exporter.pipeline.exporting), each time as a checkpoint of its own whose weights alone
are other ones, and a trace takes longer than to quantize what it gives. TorchScript's holds no weights (tracing.py):
they are attached to it by their names.

A file is found by all that a trace depends on besides: the code's classes, the configuration, what a module holds that
is no weight (buffers, numbers, tensors: the tracer writes them down), and which weights are equal to one another, for
torch.onnx makes one of those. What a model's Python asks of a weight's numbers the tracer warns of, and
exporter.targets.onnx_graph.frozen fails the trace.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import CellType, ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exporter.store import content_key

if TYPE_CHECKING:
    import onnx
    import torch

_FIRST = 8  # numbers of a weight that are looked at before all of them are
# Attributes that no forward reads: where a checkpoint lay, who wrote its configuration, how texts are generated.
_PASSED = {"name_or_path", "_name_or_path", "transformers_version", "generation_config"}


def kept_trace(
    folder: Path | None,
    module: torch.nn.Module,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    make: Callable[[], onnx.ModelProto],
) -> onnx.ModelProto:
    """The trace of a module: that of the folder of one run's traces, or made, and then kept there. None: made."""
    import onnx

    if folder is None:
        return make()
    file = folder / f"{_key(module, inputs, outputs)}.onnx"
    if file.is_file():
        return onnx.load(file)
    trace = make()
    unfinished = file.with_suffix(".unfinished")
    onnx.save(trace, unfinished)
    unfinished.replace(file)
    return trace


def _key(module: torch.nn.Module, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> str:
    """Of all that a trace depends on."""
    weights = module.state_dict(keep_vars=True)
    told = _Told(module, weights)
    seen = {
        "inputs": [*inputs.items()],
        "outputs": [*outputs.items()],
        "weights": [[name, str(one.dtype), list(one.shape)] for name, one in weights.items()],
        "equal": _equal(weights),
        "modules": [told.of(path, one) for path, one in told.modules],
    }
    return content_key(seen)


def _equal(weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Of each weight the name of the first that is equal to it: its own, where none before it is."""
    import torch

    alike: dict[Any, list[str]] = {}
    found = []
    for name, weight in weights.items():
        first = weight.detach()
        while first.dim() > 1 and len(first):
            first = first[0]
        numbers = tuple(first.reshape(-1)[:_FIRST].tolist())
        others = alike.setdefault((weight.dtype, weight.shape, numbers), [])
        same = next((one for one in others if torch.equal(weights[one], weight)), None)
        if same is None:
            others.append(name)
        found.append(same or name)
    return found


class _Told:
    """What a model holds, as JSON has it: each object once, by a number where it is met again."""

    def __init__(self, module: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
        self.modules = [*module.named_modules()]
        self._weights = weights
        # The objects too: of one that is gone another could have the id.
        self._met: dict[int, tuple[str, Any]] = {id(one): (f"module {path}", one) for path, one in self.modules}

    def of(self, path: str, module: torch.nn.Module) -> list[Any]:
        """A module's class, and what it holds besides weights and modules."""
        import torch

        of_all = vars(torch.nn.Module())  # hooks, and the tables of what is looked at by itself
        held = {name: value for name, value in vars(module).items() if name not in of_all}
        prefix = f"{path}." if path else ""
        buffers = {name: one for name, one in module._buffers.items() if f"{prefix}{name}" not in self._weights}
        return [path, _name(module), module.training, self._value(held), self._value(buffers)]

    def _value(self, value: Any) -> Any:
        import torch

        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, torch.Tensor):
            return _contents(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy(), value)
        if isinstance(value, (np.ndarray, np.generic)):
            return _contents(np.frombuffer(value.tobytes(), np.uint8), value)
        if id(value) in self._met:
            return self._met[id(value)][0]
        self._met[id(value)] = (f"object {len(self._met)}", value)
        if isinstance(value, Mapping):
            return [[str(name), self._value(one)] for name, one in value.items() if name not in _PASSED]
        if isinstance(value, (list, tuple)):
            return [self._value(one) for one in value]
        if isinstance(value, (set, frozenset)):
            return sorted(map(str, value))
        if isinstance(value, torch.dtype):
            return [_name(value), str(value)]
        if isinstance(value, (type, ModuleType)):
            return [_name(value), value.__name__]
        if isinstance(value, partial):
            return [_name(value), self._value([value.func, value.args, value.keywords])]
        if isinstance(value, CellType):  # what a function closes over; str: an empty one has no contents
            return [_name(value), self._value(value.cell_contents) if "empty" not in str(value) else None]
        bound = [getattr(value, name, None) for name in ("__qualname__", "__self__", "__closure__")]
        return [_name(value), self._value([*bound, getattr(value, "__dict__", {})])]


def _name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _contents(numbers: NDArray[np.uint8], of: Any) -> list[Any]:
    return [str(of.dtype), list(of.shape), hashlib.sha256(numbers.data).hexdigest()]
