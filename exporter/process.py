"""Workers: one export or one measurement in a process of its own, and both ends of the pipe to it.

A worker's peak memory is its own, and an engine that crashes is an error with its signal's name, not the end of the
run. Requests and replies are JSON lines; what libraries print goes to a log file. The parent holds a `Worker`; the
child runs `serve` on the table of what can be asked for (exporter/pipeline/worker.py).
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Self

from exporter.cache import COMPILED
from exporter.errors import EXIT_JOB, BuildError, ExporterError, JobError
from exporter.forkserver import Process, Start, attend, shared, stay, warm_up
from exporter.progress import Counted
from exporter.store import cache_folder, disk_full, writable
from exporter.types import Checkpoint

# For a worker that computes on whole weight matrices: a new tensor costs a quarter on huge pages.
HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
_CHILD = "exporter.pipeline.worker"  # by name: ground imports nothing of the rooms above it
Progress = Callable[[str, int, int], None]  # (what is being done, done, total); total 0: not known


def silent(what: str, done: int, total: int) -> None:
    """The progress of nobody who looks."""


Stepped = Callable[[str, int, int], None]  # (the step that begins, its number from 1, how many there are)


def unheard(step: str, number: int, of: int) -> None:
    """Told of the steps of nobody who looks."""


class Steps:
    """The steps of a command, all named before the first: `steps(name)` tells that one begins.

    One that turns out to be done already is left out.
    """

    def __init__(self, told: Stepped, names: Sequence[str]) -> None:
        self._told, self._names = told, tuple(names)

    def __call__(self, name: str) -> None:
        self._told(name, self._names.index(name) + 1, len(self._names))


@dataclass
class Session:
    """What an operation has in its worker besides its arguments. `opened`: what one leaves open for those after it."""

    progress: Progress
    opened: Any = None

    def counted(self, what: str) -> Counted:
        """The progress of one thing: (done, total)."""
        return lambda done, total: self.progress(what, done, total)

    def waiting(self, holder: str) -> None:
        """The progress of an operation that waits for another run, which makes the same."""
        self.progress(f"waiting for {holder}, which makes the same", 0, 0)

    def megabytes(self, what: str) -> Counted:
        """Progress in bytes, told in MB."""
        return lambda done, total: self.progress(f"{what}, MB", done // 10**6, total // 10**6)


Operation = Callable[..., Any]  # (session, **arguments as JSON has them) -> what JSON can say


def _error(reply: Mapping[str, Any]) -> ExporterError:
    """What a worker's operation raised."""
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

    @classmethod
    def of(cls, error: Exception) -> Self:
        """A bug that was met in this process, as one that a worker met."""
        return cls(_first_line(error), "".join(traceback.format_exception(error)))


def worker_environment(threads: int) -> dict[str, str]:
    """What a worker has in its environment besides its parent's. Raises BuildError where the cache cannot be used."""
    writable(cache_folder(), "set EXPORTER_CACHE to another folder")  # torch's import alone makes a folder there
    return {
        "HF_HUB_OFFLINE": "1",  # what must be downloaded has been, by the parent
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime 1.31 would send events, and leave a session's file in /tmp
        "TORCHINDUCTOR_CACHE_DIR": str(COMPILED.entry("torchinductor")),  # else in /tmp
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
    }


def lasting_server(
    folder: Path, threads: int, environment: Mapping[str, str], imported: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """Starts a fork server for many runs in a row, with `imported` modules too: it stays until its stdin is closed.

    Its socket is where runs look whose environment names `folder` as forkserver.SHARED; its log lies beside it.
    """
    command = [sys.executable, "-m", _CHILD, str(folder / f"{threads}.sock"), *imported]
    with (folder / f"{threads}.log").open("wb") as log:
        return subprocess.Popen(
            command, env=dict(environment), stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )


class Worker:
    """`with Worker(log, threads) as worker: worker(operation, key=value)`: a function of this program, called there.

    Paths arrive as text, and a `checkpoint` as a Checkpoint. The process starts with the first operation.
    """

    def __init__(
        self,
        log: Path,
        threads: int,
        progress: Progress = silent,
        environment: Mapping[str, str] | None = None,
        start: Start = shared,
    ) -> None:
        """`start`: where its process comes from; `fresh` where its memory must be nobody's but its own."""
        self._log, self._threads, self._progress = log, threads, progress
        self._environment, self._start = dict(environment or {}), start
        self._process: Process | None = None

    def __enter__(self) -> Self:
        return self

    def _begin(self) -> Process:
        environment = os.environ | worker_environment(self._threads) | self._environment
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            return self._start([sys.executable, "-m", _CHILD], environment, log)

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

    def __call__(self, operation: Operation, **args: Any) -> Any:
        """What an operation returns. Raises its ExporterError; WorkerFailed when the worker crashed or met a bug."""
        try:
            return self._ask(operation.__name__, args)
        except KeyboardInterrupt:
            self._kill()  # before the caller removes the folder that is being written to
            raise

    def _ask(self, name: str, args: dict[str, Any]) -> Any:
        if self._process is None:
            self._process = self._begin()
        requests, replies = self._process.stdin, self._process.stdout
        assert requests is not None
        assert replies is not None
        try:
            requests.write(json.dumps({"operation": name, "args": args}, default=_plain) + "\n")
            requests.flush()
        except BrokenPipeError:
            raise self._death(name, self._process) from None
        for line in replies:
            if not line.endswith("\n"):
                break  # it died in the middle of a reply
            reply = json.loads(line)
            if "progress" in reply:
                self._progress(*reply["progress"])
            elif "error" in reply:
                raise _error(reply)
            elif "bug" in reply:
                raise WorkerFailed(f"{reply['bug']} (in {name}; the log is {self._log})", reply["trace"])
            else:
                return reply["result"]
        raise self._death(name, self._process)

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _death(self, name: str, process: Process) -> WorkerFailed:
        status = process.wait()
        how = f"killed by {_signal_name(-status)}" if status < 0 else f"ended with status {status}"
        if status == -signal.SIGKILL:
            how += " (most often: out of memory)"
        killed_by = -status if status < 0 else None
        return WorkerFailed(f"the worker of {name} was {how}; the log is {self._log}", killed_by=killed_by)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of the thirty real-time signals, which have no names
        return f"signal {number}"


def _plain(value: Any) -> Any:
    """A path or a dataclass as JSON has it."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def begin(arguments: Sequence[str], operations: Mapping[str, Operation]) -> None:
    """The child's program: a worker, or the server that forks workers where it is given its connection or its path."""
    if arguments:
        place, *more = arguments
        warm_up(more)
        if not (attend(socket.socket(fileno=int(place))) if place.isdigit() else stay(Path(place))):
            return
    serve(operations)


def serve(operations: Mapping[str, Operation]) -> None:
    """The child's side: reads requests from stdin, does them, and answers on stdout, until the parent is gone.

    Then so is this process, and whatever it started.
    """
    # Libraries print to file descriptor 1: give them the log, and keep the pipe for replies.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # They ask on 0, whether a model's code may run for one: nobody answers there, and no request is read as an answer.
    asked = os.fdopen(os.dup(0), encoding="utf-8")
    with open(os.devnull) as nobody:  # noqa: PTH123  # a path has no file descriptor
        os.dup2(nobody.fileno(), 0)
    requests: queue.Queue[str | None] = queue.Queue()
    busy = threading.Event()

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message, default=_plain) + "\n")
        replies.flush()

    def listen() -> None:
        for line in asked:
            busy.set()  # here, not where it is taken: the parent can be gone before that
            requests.put(line)
        if busy.is_set():  # the parent died or gave up in the middle of a request
            os.killpg(os.getpgrp(), signal.SIGKILL)
        requests.put(None)

    threading.Thread(target=listen, daemon=True).start()
    session = Session(lambda what, done, total: reply({"progress": [what, done, total]}))
    while (line := requests.get()) is not None:
        request = json.loads(line)
        answer = _answer(operations[request["operation"]], session, request["args"])
        busy.clear()
        reply(answer)


def _answer(operation: Operation, session: Session, args: dict[str, Any]) -> dict[str, Any]:
    """The last reply to a request: its result, or what was raised."""
    try:
        if "checkpoint" in args:
            args["checkpoint"] = Checkpoint.load(args["checkpoint"])
        return {"result": operation(session, **args)}
    except ExporterError as error:
        build = error.build if isinstance(error, BuildError) else None
        return {"error": str(error), "status": error.exit_status, "build": build}
    except Exception as error:  # noqa: BLE001  # the parent is told: it shows the traceback
        if disk_full(error):
            message = f"the disk is full ({error}); free some space and run again"
            return {"error": message, "status": BuildError.exit_status}
        return {"bug": _first_line(error), "trace": traceback.format_exc()}


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
