"""The float file held against its checkpoint, before anything is quantized from it: what llama.cpp computes otherwise
than the model's own code hides behind what few bits cost.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from exporter.targets.folder.proven import FLOAT16, expected, float_disagrees, prove_once
from exporter.targets.gguf.encoder_decoder import kind_of
from exporter.types import ExportRequest


def prove(file: Path, request: ExportRequest) -> None:
    """Raises BuildError where the file does not answer as the request's checkpoint does, also beyond its boundaries.

    Compared once for a file: what came out stands beside it. A checkpoint that is not the reference, such as a pruned
    one, is run itself, by torch. Without a reference there is no probe.
    """
    prove_once(file.with_suffix(".proof.json"), request, "float16 file", partial(_wrong, file, request))


def _wrong(file: Path, request: ExportRequest, folder: Path) -> str | None:
    task = request.checkpoint.task
    opened = partial(kind_of(task), file, request.threads)
    _, probe, lengths = expected(request, folder)
    return float_disagrees(opened, probe, lengths, task, FLOAT16)
