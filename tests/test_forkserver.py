"""Workers that are forks of a warm process: they answer, end and die as others do, and their memory is their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from exporter import forkserver
from exporter.forkserver import ForkServer, fresh, shared
from exporter.pipeline.exporting import export_artifact
from exporter.pipeline.opening import time_round
from exporter.process import HUGE_PAGES, Worker, WorkerFailed, worker_environment
from exporter.types import GENERATION, Checkpoint

pytestmark = pytest.mark.skipif(not forkserver.FORKS, reason="nothing forks on this system")

# Servers that have imported nothing; a worker of theirs says what it was given, and then does as it is told.
TOLD = """
import os, signal, socket, sys
from pathlib import Path
from exporter.forkserver import attend, stay
place = sys.argv[1]
if attend(socket.socket(fileno=int(place))) if place.isdigit() else stay(Path(place)):
    print(os.environ["EXPORTER_CACHE"], os.getcwd(), sys.argv[1:], os.getpgrp() == os.getpid(), flush=True)
    told = sys.stdin.readline()
    print("told", file=sys.stderr, flush=True)
    sys.exit(int(told)) if told.strip().isdigit() else os.kill(os.getpid(), signal.SIGSEGV)
"""
COMMAND = [sys.executable, "-c", TOLD]


@pytest.fixture(autouse=True)
def no_session_server(monkeypatch):
    monkeypatch.delenv(forkserver.SHARED, raising=False)


@pytest.fixture
def environment():
    return os.environ | worker_environment(1)


@pytest.fixture
def log(tmp_path):
    with (tmp_path / "log").open("wb") as file:
        yield file


def ended(worker):
    """Its status; the pipes to it are closed."""
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.close()
    status = worker.wait(60)
    worker.stdout.close()
    return status


@pytest.mark.parametrize(("told", "status"), [("0", 0), ("7", 7), ("crash", -signal.SIGSEGV)])
def test_a_fork_has_what_it_is_given_and_its_end_is_told(environment, log, tmp_path, monkeypatch, told, status):
    with ForkServer() as server:
        first = server.start(COMMAND, environment, log)  # the server takes its own environment from the first
        monkeypatch.chdir(tmp_path)
        worker = server.start(COMMAND, environment | {"EXPORTER_CACHE": "another"}, log)
        assert worker.stdout.readline() == f"another {tmp_path} [] True\n"
        assert worker.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            worker.wait(0.01)
        worker.stdin.write(f"{told}\n")
        worker.stdin.flush()
        assert (worker.wait(60), worker.poll()) == (status, status)
        ended(worker)
        assert ended(first) == -signal.SIGSEGV
    assert (tmp_path / "log").read_text().count("told") == 2


def test_a_worker_outlives_its_server_and_is_not_waited_for_in_vain(environment, log):
    with ForkServer() as server:
        worker = server.start(COMMAND, environment, log)
        worker.stdout.readline()
        server._process.kill()
        server._process.wait()
        assert ended(worker) == -signal.SIGKILL  # nobody is left who could tell more
        instead = server.start([sys.executable, "-c", "print('fresh')"], environment, log)
        assert instead.stdout.readline() == "fresh\n"
        assert ended(instead) == 0


def test_a_shared_server_serves_those_whose_environment_fits(environment, log, tmp_path):
    command = [*COMMAND, tmp_path / "1.sock"]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, start_new_session=True) as stays:
        while not (tmp_path / "1.sock").exists():
            time.sleep(0.01)
        fits = environment | {forkserver.SHARED: str(tmp_path), "EXPORTER_CACHE": "another"}
        none = [sys.executable, "-c", "print('fresh')"]
        for _ in range(2):
            worker = shared(none, fits, log)
            assert worker.stdout.readline().startswith("another ")
            worker.stdin.write("3\n")
            assert ended(worker) == 3
        for other in ({"HOME": "elsewhere"}, {"OMP_NUM_THREADS": "7"}, {forkserver.SHARED: ""}):
            worker = shared(none, fits | other, log)
            assert worker.stdout.readline() == "fresh\n"
            assert ended(worker) == 0
        stays.stdin.close()
        assert stays.wait(60) == 0


@pytest.fixture(scope="module")
def servers(cache):
    with pytest.MonkeyPatch.context() as patch, ForkServer() as server:
        patch.delenv(forkserver.SHARED, raising=False)
        yield server


def test_a_bug_and_a_death_are_told_as_of_any_worker(servers, tmp_path):
    with Worker(tmp_path / "log", 1, environment=HUGE_PAGES, start=servers.start) as worker:
        with pytest.raises(WorkerFailed, match=r"AttributeError: .* \(in time_round; the log is") as bug:
            worker(time_round)
        assert bug.value.trace.startswith("Traceback")
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(WorkerFailed, match=r"killed by SIGKILL .*out of memory") as death:
            worker(time_round)
        assert death.value.killed_by == signal.SIGKILL


@pytest.mark.parametrize("variant", ["torch:bf16", "onnx:fp32"])
def test_its_peak_memory_is_that_of_a_process_of_its_own(servers, tiny, tmp_path, variant):
    target, precision = variant.split(":")
    peaks = []
    for name, start in (("fork", servers.start), ("fresh", fresh)):
        for folder in ("out", "scratch", "traces"):
            (tmp_path / name / folder).mkdir(parents=True)
        with Worker(tmp_path / "log", 1, start=start) as worker:
            done = worker(
                export_artifact, target=target, precision=precision, threads=1, calibration=None,
                options={} if target == "onnx" else None,
                checkpoint=Checkpoint(tiny, GENERATION, "tiny", "0" * 64, 0), policy=None,
                folder=tmp_path / name / "out", scratch=tmp_path / name / "scratch", reference=tmp_path,
                traces=tmp_path / name / "traces",
            )  # fmt: skip
        peaks.append(done["export_peak_rss_bytes"])
    print(variant, peaks)
    assert peaks[0] == pytest.approx(peaks[1], rel=0.1)
