"""exporter's command as the tests run it: as a process, or in this one where the process is not what counts."""

import io
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
HUNG = 800  # seconds, below pytest's own limit: a command that takes longer is asked where it stands


@pytest.fixture(scope="session")
def run_cli(cache):
    """`run_cli(*args, env=…, cwd=…)`: `exporter ARGS…` as a user runs it; the completed process with its text."""

    def run(*args, env=None, cwd=ROOT):
        command = [sys.executable, "-m", "exporter", *map(str, args)]
        environment = os.environ | {"PYTHONFAULTHANDLER": "1"} | (env or {})
        with psutil.Popen(
            command, env=environment, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            try:
                stdout, stderr = process.communicate(timeout=HUNG)
            except subprocess.TimeoutExpired:
                where = _stacks(process, args)
                raise AssertionError(f"{command} hung:\n{where}") from None
        return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)

    return run


@pytest.fixture(scope="session")
def run_here(cache):
    """As run_cli, by the same entry point, in this process: what this one has imported is not imported once more.

    For a command whose environment, signals and memory are no part of what is tested: those read at import what they
    are told.
    """
    from exporter.command.cli import main

    def run(*args, cwd=ROOT):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="", write_through=True) for _ in range(2)]
        interrupted = signal.getsignal(signal.SIGTERM)
        with pytest.MonkeyPatch.context() as here, redirect_stdout(streams[0]), redirect_stderr(streams[1]):
            here.setattr(sys, "argv", ["exporter", *map(str, args)])
            here.chdir(cwd)
            try:
                main()
            except SystemExit as ended:
                status = ended.code
            finally:
                signal.signal(signal.SIGTERM, interrupted)
        stdout, stderr = (stream.buffer.getvalue().decode() for stream in streams)
        return subprocess.CompletedProcess(["exporter", *map(str, args)], status, stdout, stderr)

    return run


def _stacks(process, args):
    """Where a hung command and its workers stand: each is ended by a signal at which Python prints its threads."""
    for one in [*process.children(recursive=True), process]:
        one.send_signal(signal.SIGABRT)
    stdout, stderr = process.communicate()
    logs = [path for folder in args if isinstance(folder, Path) for path in folder.glob("logs/*.log")]
    latest = max(logs, key=lambda path: path.stat().st_mtime, default=None)
    return "\n".join([stdout, stderr, latest.read_text()[-8000:] if latest else "no log"])
