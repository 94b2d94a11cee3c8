"""exporter: a trained model, delivered to every machine that must run it, with the proof of what that costs.

from exporter import Job, run
report = run(Job(model="tiny", target=("onnx:int8-weight",), output="out"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Job", "__version__", "run"]

if TYPE_CHECKING:
    from exporter.job import Job
    from exporter.pipeline.run import run


def __getattr__(name: str) -> Any:
    # Imported when they are asked for: `exporter --help` must not wait for pydantic.
    if name == "Job":
        from exporter.job import Job

        return Job
    if name == "run":
        from exporter.pipeline.run import run

        return run
    raise AttributeError(f"module 'exporter' has no attribute {name!r}")
