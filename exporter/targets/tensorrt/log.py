"""What a builder says: its log as a file, its last lines for an error, its layers, its progress."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

_KEPT = 3  # lines of the log in an error
_CLIP = 240
_LAYER = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<type>[^,]+), (?P<rest>.*)$", re.MULTILINE)
# What it says with SPARSE_WEIGHTS: https://github.com/NVIDIA/TensorRT/issues/2169
_SPARSE = re.compile(r"\(Sparsity\) TRT inference plan picked sparse implementation for layers:(.*)")
_INPUTS = re.compile(r"Inputs: \[(.*?)\], (?:Constants|Outputs)")
_OUTPUTS = re.compile(r"Outputs: \[(.*?)\](?:, [A-Z]\w+: |$)")
_TYPES = re.compile(r"Datatype: (\w+)")
_OF_FORMAT = re.compile(r"(\w+) format\b")
Progress = Callable[[str, int, int], None]


class Log:
    """The log of one builder: `logger` is what TensorRT's objects take.

    Lines up to INFO go to the file, where there is one, and to stderr: the worker's log, which outlives a failed build.
    With ProfilingVerbosity.DETAILED the builder describes the engine's layers in a VERBOSE message: kept apart.
    """

    def __init__(self, trt: Any, file: Path | None = None) -> None:
        log, self.layers_text = self, ""
        self._lines: list[str] = []
        self._errors: list[str] = []

        class Logger(trt.ILogger):  # type: ignore[misc]  # untyped
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity == trt.ILogger.VERBOSE:
                    if "LayerType: " in message:
                        log.layers_text += message
                    return
                line = f"[{severity.name}] {message.strip()}"
                if file is not None:  # its folder gets another name when it is whole
                    line = line.replace(f"{file.parent}/", "")
                log._lines.append(line)
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    log._errors.append(message.strip())
                if file is not None:
                    with file.open("a", encoding="utf-8") as opened:
                        opened.write(line + "\n")
                print(line, file=sys.stderr)

        self.logger = Logger()

    def sparse_layers(self) -> int | None:
        """How many layers the builder says it took a sparse tactic for; None: it said nothing of that."""
        told = [found[1] for line in self._lines if (found := _SPARSE.search(line))]
        return len(told[-1].split(", ")) if told and told[-1].strip() else 0 if told else None

    def last_lines(self) -> str:
        """The last errors, or else the last lines, as one line."""
        lines = (self._errors or self._lines)[-_KEPT:]
        return " | ".join(" ".join(line.split())[:_CLIP] for line in lines) or "it logged nothing"


def monitor(trt: Any, what: str, progress: Progress) -> Any:
    """An IProgressMonitor that tells of a build's outer phases; called from several of TensorRT's threads."""
    lock = threading.Lock()
    depth: dict[str | None, int] = {None: -1}
    steps: dict[str, int] = {}

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # untyped
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, count: int) -> None:
            with lock:
                depth[phase] = depth.get(parent, 1) + 1
                steps[phase] = count
                if depth[phase] == 1:  # below "Building engine"
                    progress(f"{what}: {phase[0].lower()}{phase[1:]}", 0, count)

        def step_complete(self, phase: str, step: int) -> bool:
            with lock:
                if depth.get(phase) == 1:
                    progress(f"{what}: {phase[0].lower()}{phase[1:]}", step + 1, steps[phase])
            return True  # go on

        def phase_finish(self, phase: str) -> None:
            pass

    return Monitor()


def layers_of_log(text: str) -> list[dict[str, Any]]:
    """The engine's layers as the builder described them: name, type, the types of its inputs and outputs."""
    return [
        {
            "name": layer["name"],
            "type": layer["type"],
            "inputs": _types(_INPUTS, layer["rest"]),
            "outputs": _types(_OUTPUTS, layer["rest"]),
            "description": layer[0],
        }
        for layer in _LAYER.finditer(text)
    ]


def _types(part: re.Pattern[str], description: str) -> list[str]:
    found = part.search(description)
    return _TYPES.findall(found[1]) if found else []


def layers_of_inspector(described: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same of an engine inspector's JSON, which needs a device."""
    return [
        {
            "name": layer["Name"],
            "type": layer["LayerType"],
            "inputs": [_type(value) for value in layer.get("Inputs", ())],
            "outputs": [_type(value) for value in layer.get("Outputs", ())],
            "description": layer,
        }
        for layer in described["Layers"]
        if isinstance(layer, dict)  # without DETAILED an inspector gives names only
    ]


def _type(value: Mapping[str, Any]) -> str:
    """Its type: 'Datatype'; in TensorRT 10 'Format/Datatype', such as 'Half' or 'Row major linear FP16 format'."""
    if "Datatype" in value:
        return str(value["Datatype"])
    said = str(value.get("Format/Datatype", "unknown"))
    named = _OF_FORMAT.search(said)
    return named[1] if named else said


def count_layers(layers: Iterable[Mapping[str, Any]], source: str) -> dict[str, Any]:
    """How many layers there are of each type and of each precision: that of what a layer reads, else of what it writes.

    `source` says who described them.
    """
    types: dict[str, int] = {}
    precisions: dict[str, int] = {}
    number = 0
    for layer in layers:
        number += 1
        types[layer["type"]] = types.get(layer["type"], 0) + 1
        kinds = [kind for kind in (*layer["inputs"], *layer["outputs"]) if not kind.startswith(("Int64", "Bool"))]
        precision = kinds[0] if kinds else "shapes"
        precisions[precision] = precisions.get(precision, 0) + 1
    return {"source": source, "count": number, "by_type": types, "by_precision": precisions}
