"""The parent's side of a worker: one export or one measurement in a process of its own.

Its peak memory is its own, and an engine that crashes is an error with its signal's name, not the end of the run.
Requests and replies are JSON lines (exporter.pipeline.worker has the other side); what libraries print goes to a log
file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from exporter.errors import EXIT_JOB, BuildError, ExporterError, JobError
from exporter.store import cache_folder, writable

# For a worker that computes on whole weight matrices: torch then asks for huge pages, and a new tensor costs a quarter.
HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
Progress = Callable[[str, int, int], None]  # (what is being done, done, total); total 0: not known


def silent(what: str, done: int, total: int) -> None:
    """The progress of nobody who looks."""


def _error(reply: Mapping[str, Any]) -> ExporterError:
    """What a worker's op raised."""
    if reply["status"] == EXIT_JOB:
        return JobError(reply["error"])
    error = BuildError(reply["error"])
    error.build = reply.get("build")
    return error


class WorkerFailed(BuildError):
    """A worker died (`killed_by`: the signal), or met a bug: of exporter, a library, or the model's code (`trace`)."""

    def __init__(self, message: str, trace: str = "", killed_by: int | None = None) -> None:
        super().__init__(message)
        self.trace, self.killed_by = trace, killed_by


class Worker:
    """`with Worker(log, threads) as worker: worker("op", key=value)`; what an op can be is in
    exporter.pipeline.worker.OPS.

    The process starts with the first op.
    """

    def __init__(
        self, log: Path, threads: int, progress: Progress = silent, environment: Mapping[str, str] | None = None
    ) -> None:
        self._log, self._threads, self._progress = log, threads, progress
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def _start(self) -> subprocess.Popen[str]:
        cache = cache_folder()
        writable(cache, "set EXPORTER_CACHE to another folder")  # torch's import alone makes a folder there
        quiet = {
            "HF_HUB_OFFLINE": "1",  # what must be downloaded has been, by the parent
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime 1.31 would send events, and leave a session's file in /tmp
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "torchinductor"),  # else in /tmp
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": str(self._threads),
            "PYTHONUNBUFFERED": "1",
        }
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "exporter.pipeline.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | quiet | self._environment,
                start_new_session=True,  # Ctrl-C reaches the parent alone, which ends the whole group
                text=True,
            )

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if self._process is None:
            return
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except BrokenPipeError:
                pass  # it died first; its status has been reported
        try:
            self._process.wait(timeout=0 if kind else 20)
        except subprocess.TimeoutExpired:
            self._kill()

    def __call__(self, op: str, **args: Any) -> Any:
        """What an op returns. Raises its ExporterError, or WorkerFailed when the worker crashed or met a bug."""
        try:
            return self._ask(op, args)
        except KeyboardInterrupt:
            self._kill()  # before the caller removes the folder that is being written to
            raise

    def _ask(self, op: str, args: dict[str, Any]) -> Any:
        if self._process is None:
            self._process = self._start()
        requests, replies = self._process.stdin, self._process.stdout
        assert requests is not None
        assert replies is not None
        try:
            requests.write(json.dumps({"op": op, "args": args}, default=str) + "\n")
            requests.flush()
        except BrokenPipeError:
            raise self._death(op, self._process) from None
        for line in replies:
            reply = json.loads(line)
            if "progress" in reply:
                self._progress(*reply["progress"])
            elif "error" in reply:
                raise _error(reply)
            elif "bug" in reply:
                raise WorkerFailed(f"{reply['bug']} (in {op}; the log is {self._log})", reply["trace"])
            else:
                return reply["result"]
        raise self._death(op, self._process)

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _death(self, op: str, process: subprocess.Popen[str]) -> WorkerFailed:
        status = process.wait()
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        if status == -signal.SIGKILL:
            how += " (most often: out of memory)"
        killed_by = -status if status < 0 else None
        return WorkerFailed(f"the {op} process was {how}; the log is {self._log}", killed_by=killed_by)
