"""A file's signatures held against one another: each is traced by itself, and a short text never reaches the long ones.

What one of them answers is held against the checkpoint elsewhere; so all of them are right, or none.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from exporter.errors import BuildError
from exporter.form import FORMS
from exporter.measure.quality import ANSWERS, Reference, finite
from exporter.runner import Ids
from exporter.targets.folder.proven import FLOAT32
from exporter.targets.litert.opened import open_file
from exporter.targets.litert.runner import LitertPictures
from exporter.types import ExportRequest

_STEPS = 8  # positions that are compared: those that decode reads one by one


def prove_signatures(program: Path, request: ExportRequest) -> None:
    """Raises BuildError where a float32 program's signatures answer otherwise than the longest.

    On the longest text of the evaluation that is read without a cache: shorter prefills read it in pieces, with one.
    Without a reference there is no text.
    """
    if request.reference is None or FORMS[request.checkpoint.task].inputs == "pixels":  # which has one signature
        return
    request.progress("comparing the signatures", 0, 0)
    passages = Reference.load(request.reference / ANSWERS).passages
    if (wrong := _disagree(program, request, max(passages, key=len))) is not None:
        raise BuildError(f"its signatures do not agree: {wrong}")


def _disagree(program: Path, request: ExportRequest, text: Ids) -> str | None:
    with open_file(program, request.checkpoint.task, request.threads) as runner:
        assert not isinstance(runner, LitertPictures)
        found = runner.by_signature(text, _STEPS)
        first, expected = next(found)
        numbers = finite(text, expected)[np.isfinite(expected)]
        allowed = FLOAT32.error * max(1.0, float(np.abs(numbers).max()))
        for name, got in found:
            unlike = finite(text, got) != expected  # both may be -inf
            error = float(np.abs(got[unlike] - expected[unlike]).max(initial=0.0))
            if not error <= allowed:
                return f"{name} is off {first} by {error:.2g}"
    return None
