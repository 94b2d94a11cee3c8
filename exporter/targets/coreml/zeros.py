"""The zeros in a written package's layers, a weight in memory at a time, and which of them are kept out of the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from exporter.targets.coreml.convert import PACKAGE
from exporter.targets.coreml.held import weights_of
from exporter.targets.coreml.mil.compiling import Compiler
from exporter.targets.coreml.mil.package import open_package
from exporter.targets.coreml.mil.program import read_function
from exporter.targets.coreml.sparse import SPARSE
from exporter.types import Zeros


def zeros_of(folder: Path, files: Sequence[str] = ()) -> Zeros:
    """Of what the program's constants decode to, by exporter's own evaluator of them."""
    package = open_package(folder / PACKAGE)
    operations = read_function(package).operations
    makers = {name: operation for operation in operations for name, _ in operation.outputs}
    layers = [weight.name for weight in weights_of(folder) if not weight.table]
    counts = {}
    for name in layers:
        # A compiler of its own for each: it keeps what it has read.
        value = Compiler(package, half=False).value(name, makers)
        counts[name] = int(value.size - np.count_nonzero(value))
    sparse = sum(makers[name].kind == SPARSE for name in layers)
    return Zeros(counts, _told(sparse, len(layers)))


def _told(sparse: int, layers: int) -> str:
    if not sparse:
        return (
            "no sparse weights of Core ML: they would be no fewer bytes, or the form has none (palettes; integers "
            "before iOS18); a zero is stored and multiplied as any other number"
        )
    return (
        f"Core ML's sparse weights in {sparse} of {layers} layers: a bit for each number, and the numbers that are not "
        "0; what that is in speed only a device tells"
    )
