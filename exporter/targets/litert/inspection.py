"""What is in a .tflite file, as plain data: of any program, not of exporter's alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from exporter.targets.litert.describe import FACTS
from exporter.targets.litert.flatbuffer import kind_of, operator, read_model, signatures


def inspect(path: Path) -> dict[str, Any]:
    """Signatures with inputs, outputs and operators; bytes of constants by the type they are stored in.

    A constant that signatures share is counted once. Without signatures the subgraphs are told. Raises BuildError for
    what is damaged, and MissingPackage without ai-edge-litert.
    """
    program = read_model(path)
    named = [(name, graph, _outer(definition)) for name, definition, graph in signatures(program)]
    graphs = named or [((one.name or b"main").decode(), one, {}) for one in program.subgraphs]
    facts = {one.name.decode(): program.buffers[one.buffer].data for one in program.metadata or ()}
    told = json.loads(bytes(facts[FACTS])) if facts.get(FACTS) is not None else {}
    description = (program.description or b"").decode()
    return {
        "format": "tflite",
        "schema_version": program.version,
        "functions": [_function(program, name, graph, outer) for name, graph, outer in graphs],
        "bytes": _bytes(program),
        "metadata": {"description": description, **told},
    }


def _outer(definition: Any) -> dict[int, str]:
    return {one.tensorIndex: one.name.decode() for one in (*definition.inputs, *definition.outputs)}


def _function(program: Any, name: str, graph: Any, outer: dict[int, str]) -> dict[str, Any]:
    counts = Counter(operator(program, op) for op in graph.operators)
    return {
        "name": name,
        "inputs": [_type(graph.tensors[index], outer.get(index)) for index in graph.inputs],
        "outputs": [_type(graph.tensors[index], outer.get(index)) for index in graph.outputs],
        "states": [],
        "operators": dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
    }


def _type(tensor: Any, name: str | None) -> dict[str, Any]:
    shape = [int(one) for one in tensor.shape] if tensor.shape is not None else []
    return {"name": name or tensor.name.decode(), "type": kind_of(tensor), "shape": shape}


def _bytes(program: Any) -> dict[str, int]:
    """By the stored type, largest first."""
    kinds = {tensor.buffer: kind_of(tensor) for graph in program.subgraphs for tensor in graph.tensors}
    sizes: Counter[str] = Counter()
    for index, buffer in enumerate(program.buffers):
        if index in kinds and buffer.data is not None:
            sizes[kinds[index]] += len(buffer.data)
    return dict(sizes.most_common())
