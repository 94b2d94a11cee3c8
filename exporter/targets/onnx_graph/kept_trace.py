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
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    seen = {
        "inputs": [*inputs.items()],
        "outputs": [*outputs.items()],
        "weights": [[name, str(one.dtype), list(one.shape)] for name, one in weights.items()],
        "equal": _equal(weights),
        "modules": [[path, *_of(path, one, weights)] for path, one in module.named_modules()],
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


def _of(path: str, module: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> list[Any]:
    """A module's class, and what it holds besides weights and modules."""
    import torch

    of_all = vars(torch.nn.Module())  # hooks, and the tables of what is looked at by itself
    held = {name: value for name, value in vars(module).items() if name not in of_all}
    prefix = f"{path}." if path else ""
    buffers = {name: value for name, value in module._buffers.items() if f"{prefix}{name}" not in weights}
    return [f"{type(module).__module__}.{type(module).__qualname__}", module.training, _told(held), _told(buffers)]


def _told(value: Any) -> Any:
    """A value as JSON has it; of what is no number, text, tensor or table of them the class."""
    import torch

    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        whole = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return [str(value.dtype), list(value.shape), hashlib.sha256(whole.data).hexdigest()]
    if isinstance(value, Mapping):
        return [[str(name), _told(one)] for name, one in value.items() if name not in _PASSED]
    if isinstance(value, (list, tuple)):
        return [_told(one) for one in value]
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return [kind, _told(vars(value))] if hasattr(value, "to_diff_dict") else kind  # a configuration of transformers
