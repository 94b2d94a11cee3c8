"""`exporter inspect`: what is in a model file of any format that a target writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from exporter.command.show import stdout
from exporter.errors import JobError
from exporter.targets import known

Inspect = Callable[[Path], Mapping[str, Any]]
_LONG = 100  # characters of a metadata's value that are shown


def print_inspected(path: Path, form: str) -> None:
    """A file, or an artifact's folder with one. Raises JobError where no target knows it; BuildError: it is broken."""
    file, inspect = found(path)
    told = {"file": str(file), **inspect(file)}
    if form == "json":
        print(json.dumps(told))
        return
    console = stdout()
    console.print(Text(f"{file}: {told['format']}", style="bold"))
    for function in told["functions"]:
        table = Table("", "name", "type", "shape", box=SIMPLE)
        for kind in ("inputs", "states", "outputs"):
            for one in function[kind]:
                shape = " × ".join("?" if size is None else str(size) for size in one["shape"])
                table.add_row(kind[:-1], Text(one["name"]), one["type"], Text(shape))
        console.print(table)
        table = Table("operator", "count", box=SIMPLE)
        for name, count in function["operators"].items():
            table.add_row(Text(name), f"{count:,}")
        console.print(table)
    total = sum(told["bytes"].values())
    table = Table("weights' type", "bytes", "share", box=SIMPLE)
    for name, size in told["bytes"].items():
        table.add_row(name, f"{size:,}", f"{size / max(total, 1):.1%}")
    console.print(table)
    for name, value in told["metadata"].items():
        line = " ".join(str(value).split())
        if line:
            console.print(Text(f"{name}: {line if len(line) <= _LONG else line[:_LONG] + '…'}"))


def found(path: Path) -> tuple[Path, Inspect]:
    """The file that is meant, and what reads it: a target's, by the end of its name."""
    readers = {suffix: read for target in known.all_targets().values() for suffix, read in target.inspects.items()}
    if not path.exists():
        raise JobError(f"{path} is not there; give a model file ({', '.join(readers)}) or an artifact's folder")
    held = [*sorted(path.glob("*")), *sorted(path.glob("onnx/*"))]  # where the clients of ONNX look
    inside = [path] if path.suffix in readers else [one for one in held if one.suffix in readers]
    inside = [one for one in inside if one.name != "imatrix.gguf"]  # beside the model, of its inputs
    if len(inside) != 1:
        which = (
            f"it holds {', '.join(one.name for one in inside)}: name one" if inside else "it is none, and holds none"
        )
        raise JobError(f"{path}: a model file ends in {', '.join(readers)}, and {which}")
    return inside[0], readers[inside[0].suffix]
