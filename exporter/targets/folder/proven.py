"""A float form held against its checkpoint once, before anything is quantized of it.

What a quantized artifact has wrong of its own and what it has from the float form cannot be told apart afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from exporter.errors import BuildError
from exporter.types import ExportRequest


def prove_once(said: Path, request: ExportRequest, what: str, wrong: Callable[[Path], str | None]) -> None:
    """Raises BuildError where `what`, such as "float graph", does not agree with the reference.

    `wrong` says in words what does not, from the reference's folder; None: it agrees. What came out is kept in `said`,
    in the run's scratch folder, and not asked for again. Without a reference there is nothing to compare with.
    """
    if request.reference is None:
        return
    if not said.is_file():
        request.progress(f"proving the {what}", 0, 0)
        said.write_text(json.dumps(wrong(request.reference)), encoding="utf-8")
    if (found := json.loads(said.read_text(encoding="utf-8"))) is not None:
        raise disagrees(what, found)


def disagrees(what: str, wrong: str) -> BuildError:
    return BuildError(f"its {what} does not agree with the reference ({wrong}); nothing was quantized")
