"""The float file held against its checkpoint, before anything is quantized from it: what llama.cpp computes otherwise
than the model's own code hides behind what few bits cost.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from exporter.measure.lengths import LENGTHS, Lengths
from exporter.measure.quality import ANSWERS, Reference
from exporter.targets.folder.proven import half_disagrees, prove_once
from exporter.targets.gguf.runner import GgufDecoder, GgufEncoder
from exporter.types import GENERATION, ExportRequest


def prove(file: Path, request: ExportRequest) -> None:
    """Raises BuildError where the file does not answer as the reference did, also beyond the model's boundaries.

    Compared once for a file: what came out stands beside it. Without a reference there is nothing to compare with.
    """
    prove_once(file.with_suffix(".proof.json"), request, "float16 file", partial(_wrong, file, request))


def _wrong(file: Path, request: ExportRequest, folder: Path) -> str | None:
    task = request.checkpoint.task
    opened = partial(GgufDecoder if task == GENERATION else GgufEncoder, file, request.threads)
    return half_disagrees(opened, Reference.load(folder / ANSWERS).probe, Lengths.load(folder / LENGTHS), task)
