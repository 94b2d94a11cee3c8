"""Workers from a warm process: one that has imported what each of them needs, and forks.

What transformers imports when it loads a model takes longer than a small export, and a run starts a worker for each
artifact: here it is imported once. A child shares the server's pages until it writes to them. Linux counts them as
resident in both, but for files' pages that it has not touched; with those (`unread`) its peak memory is what it would
be in a process of its own (tests/test_forkserver.py).

The server has imported and done nothing else: no CUDA context, no thread but OpenBLAS's, which ends them before a fork.
On Linux alone: the frameworks of macOS do not survive one.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol, Self

FORKS = sys.platform == "linux" and hasattr(os, "pidfd_open")
# Names a folder of sockets, THREADS.sock each, of servers that stay: for many runs in a row, as the tests are.
SHARED = "EXPORTER_FORKSERVERS"
# What every load of a model imports, and nothing that only some targets need.
IMPORTED = ("torch", "transformers.modeling_utils", "transformers.models.auto.modeling_auto")
# What Python, torch, transformers and what they import read once: a worker must have it as its server had. It is no use
# to compare all: some libraries set variables of their own when they are imported.
_READ_ONCE = re.compile(
    r"(PYTHON(?!FAULT)|LD_|LC_|LANG|OMP_|MKL_|OPENBLAS_|HF_|HUGGING|TRANSFORMERS_|TORCH(?!INDUCTOR_CACHE)|PYTORCH_"
    r"|CUDA_|ACCELERATE_|TOKENIZERS_|USE_|HOME$|XDG_|TMPDIR$|PATH$)"
)
_START, _REFUSED = b"start", b"refused"
_STATUS = Path("/proc/self/status")
_LONGEST = 64  # bytes of a message: _START, _REFUSED, or a number
_server_read = 0  # bytes of files' pages that were resident in the server when it forked this process


class Process(Protocol):
    """What its parent has of a worker, forked or not: some of subprocess.Popen's own names."""

    pid: int
    stdin: IO[str] | None
    stdout: IO[str] | None

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...


Start = Callable[[Sequence[str], Mapping[str, str], IO[bytes]], Process]  # (command, environment, log for stderr)


def fresh(command: Sequence[str], environment: Mapping[str, str], log: IO[bytes]) -> Process:
    """A process that has imported nothing, in a session of its own: Ctrl-C reaches the parent alone."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=log, env=environment, start_new_session=True, text=True
    )


def shared(command: Sequence[str], environment: Mapping[str, str], log: IO[bytes]) -> Process:
    """A fork of a server that stays, where SHARED names one that fits; else fresh."""
    folder = environment.get(SHARED)
    path = Path(folder, f"{environment['OMP_NUM_THREADS']}.sock") if folder else None
    if path is None or not path.is_socket():
        return fresh(command, environment, log)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.connect(str(path))
    forked = _fork(server, environment, log, alone=True)
    if forked is None:
        server.close()
    return forked or fresh(command, environment, log)


class ForkServer:
    """`with ForkServer() as server: Worker(…, start=server.start)`. It starts with the first worker.

    Where a shared one fits that is used instead.
    """

    def __init__(self) -> None:
        self._connection: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._connection is not None and self._process is not None:
            self._connection.close()
            self._process.kill()  # it holds nothing that could be lost
            self._process.wait()

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: IO[bytes]) -> Process:
        """A worker; `command` becomes a server when it is given the number of its end of a connection."""
        if not FORKS or SHARED in environment:
            return shared(command, environment, log)
        if self._connection is None:
            self._connection, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with its:
                self._process = subprocess.Popen(
                    [*command, str(its.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={name: value for name, value in environment.items() if name != "THP_MEM_ALLOC_ENABLE"},
                    pass_fds=(its.fileno(),),
                    start_new_session=True,
                )
        return _fork(self._connection, environment, log, alone=False) or fresh(command, environment, log)


@dataclass
class Forked:
    """A worker that a server forked: the server alone can ask the system how it ended, and does when it is asked."""

    pid: int
    stdin: IO[str] | None
    stdout: IO[str] | None
    server: socket.socket
    alone: bool  # no other worker is asked after on this connection
    status: int | None = None
    _end: int = field(init=False)  # a file that can be read when it has ended

    def __post_init__(self) -> None:
        self._end = os.pidfd_open(self.pid)

    def poll(self) -> int | None:
        """Its exit status, or minus the signal that ended it; None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.status

    def wait(self, timeout: float | None = None) -> int:
        """The same of one that has ended. Raises subprocess.TimeoutExpired after so many seconds."""
        if self.status is None:
            if not select.select([self._end], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            os.close(self._end)
            # Of a server that is gone too, nobody knows more than that somebody killed both.
            self.status = int(_answer(self.server, str(self.pid).encode()) or -signal.SIGKILL)
            if self.alone:
                self.server.close()
        return self.status


def _fork(server: socket.socket, environment: Mapping[str, str], log: IO[bytes], alone: bool) -> Forked | None:
    """Has a server fork a worker; None where it is gone, or has read another environment."""
    requests, mine = os.pipe()
    replies, its = os.pipe()
    asked = os.memfd_create("environment")
    os.write(asked, json.dumps({"environment": dict(environment), "folder": os.getcwd()}).encode())  # noqa: PTH109
    os.lseek(asked, 0, os.SEEK_SET)
    ends = [requests, its, log.fileno(), asked]
    answer = _answer(server, _START, ends)
    for end in (requests, its, asked):
        os.close(end)
    if answer in (b"", _REFUSED):
        os.close(mine)
        os.close(replies)
        return None
    return Forked(int(answer), os.fdopen(mine, "w"), os.fdopen(replies), server, alone)


def _answer(server: socket.socket, message: bytes, files: Sequence[int] = ()) -> bytes:
    """What a server answers; nothing where it is gone."""
    try:
        socket.send_fds(server, [message], files)
        return server.recv(_LONGEST)
    except (BrokenPipeError, ConnectionResetError):
        return b""


def attend(connection: socket.socket) -> bool:
    """The server's side, after `warm_up`: forks, and tells how a worker ended. True: this is a worker now."""
    global _server_read  # of the process, as its memory is
    while True:
        message, ends, _, _ = socket.recv_fds(connection, _LONGEST, 4)
        if not message:
            return False  # the parent is gone
        if message != _START:
            _, status = os.waitpid(int(message), 0)
            connection.send(str(os.waitstatus_to_exitcode(status)).encode())
            continue
        *standard, asked = ends
        with open(asked, encoding="utf-8") as file:  # noqa: PTH123  # a path has no file descriptor
            told = json.load(file)
        others = set(told["environment"].items()) ^ set(os.environ.items())
        fits = not any(_READ_ONCE.match(name) for name, _ in others)
        read = resident("RssFile")
        pid = os.fork() if fits else None
        if pid is not None:
            # By both of them: whoever is told the number can end the group, whichever came first.
            with suppress(ProcessLookupError):
                os.setpgid(pid, pid)
        if pid == 0:
            _server_read = read
            connection.close()
            for number, end in enumerate(standard):
                os.dup2(end, number)
            del sys.argv[1:]
            os.chdir(told["folder"])
            os.environ.clear()
            os.environ.update(told["environment"])
        for end in standard:
            os.close(end)
        if pid == 0:
            return True
        connection.send(_REFUSED if pid is None else str(pid).encode())


def resident(what: str) -> int:
    """Bytes of one of the kernel's counts of this process's resident memory, such as VmHWM, on Linux."""
    [line] = [line for line in _STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(f"{what}:")]
    return int(line.split()[1]) * 1024


def unread() -> int:
    """Bytes of libraries' pages that this process's server had read, and it has not: by itself it would have."""
    return max(0, _server_read - resident("RssFile")) if _server_read else 0


def stay(path: Path) -> bool:
    """A shared server, until its stdin ends: for each run that connects a fork attends. True: this is a worker now."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how those ended
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"{path}.tmp")
        listener.listen()
        Path(f"{path}.tmp").rename(path)  # who sees it can connect
        while 0 not in select.select([listener.fileno(), 0], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                return attend(connection)
            connection.close()
    return False


def warm_up(more: Sequence[str]) -> None:
    """Imports what its workers will. What cannot be imported each of them meets, and says, where it needs it."""
    for name in (*IMPORTED, *more):
        with suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # else a collection in a child writes to, and so copies, each page
