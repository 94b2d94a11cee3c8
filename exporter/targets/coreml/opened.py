"""An artifact's package as a runner: by Core ML on macOS, elsewhere by the reference evaluator."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from exporter.targets.coreml.convert import PACKAGE

UNTIMED = "Core ML runs on macOS alone; here its program was evaluated"


def open_folder(folder: Path, threads: int) -> Any:
    """An artifact's folder; its task is in the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return open_package(folder / PACKAGE, manifest["task"], threads, half=not manifest["variant"].endswith(":fp32"))


def open_package(package: Path, task: str, threads: int, half: bool = True) -> Any:
    """A package of a task's model. `half`: where it is evaluated, float16 is rounded to as the program declares it."""
    if sys.platform == "darwin":
        from exporter.targets.coreml.predict import open_predict

        return open_predict(package, task)
    from exporter.targets.coreml.mil.runner import open_mil

    runner: Any = open_mil(package, threads, half, task)
    runner.untimed = UNTIMED
    return runner
