"""The float32 program held against its checkpoint, before anything is quantized of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from exporter.targets.folder.proven import disagrees, expected, half_disagrees, prove_once
from exporter.targets.litert.opened import open_file
from exporter.types import ExportRequest

_WHAT = "float32 program"


def prove(file: Path, request: ExportRequest) -> None:
    """Raises BuildError where the program does not answer as the request's checkpoint does, also beyond its boundaries.

    Compared once for a file: what came out stands beside it. Without a reference there is nothing to compare with.
    """
    prove_once(file.with_name("proof.json"), request, _WHAT, partial(_wrong, file, request))


def _wrong(file: Path, request: ExportRequest, folder: Path) -> str | None:
    task = request.checkpoint.task
    _, probe, lengths = expected(request, folder)
    opened = partial(open_file, file, task, request.threads)
    try:
        return half_disagrees(opened, probe, lengths, task)
    except Exception as error:  # whatever an engine raises of a program that it does not take
        raise disagrees(_WHAT, " ".join(str(error).split())[:300] or type(error).__name__) from error
