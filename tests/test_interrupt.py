"""A run that is cut short: by Ctrl-C, SIGTERM, kill -9, a crashing engine or a full disk. The next one succeeds."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from conftest import SMALL, after_steps, alone, the_error

from exporter.store import damage, read_manifest

WHERE = ("reference", "export", "quality")  # the phases of a run, in order


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """One output for all tests here, so that each goes on from what the last one left. Each would work alone."""
    return tmp_path_factory.mktemp("interrupted") / "out"


@pytest.fixture
def start(tiny, cache):
    """`start(phase, out)`: a run in the middle of a phase, and the process that works on it, held still there."""
    runs = []

    def begin(phase, out, *flags, cache=cache):
        for stale in {"reference": ("job.json", "reference"), "export": ("onnx-fp32",), "quality": ("figures",)}.get(
            phase, ()
        ):
            remove(out / stale)
        remove(out / "logs")
        signs = {
            "merge": (cache, "checkpoints/.merged-*.tmp"),
            "reference": (out, "job.json"),
            "export": (out, ".scratch.*.tmp/onnx/float"),
            "quality": (out, "logs/onnx-fp32.quality.log"),
        }
        command = [sys.executable, "-m", "exporter", "run", *SMALL, "-m", tiny, "-t", "onnx:fp32", "--force", "-o", out]
        run = psutil.Popen(
            [str(word) for word in (*command, *flags)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=alone(EXPORTER_CACHE=str(cache)),
        )
        runs.append(run)
        folder, sign = signs[phase]
        (worker,) = wait_for(lambda: list(folder.glob(sign)) and workers(run), run)
        worker.suspend()
        # Now the run comes to where it waits for the worker. Python swallows an interrupt that hits a weakref's
        # callback, such as each import has; where it waits there is none.
        time.sleep(0.5)
        return run, worker

    yield begin
    for run in runs:
        if run.poll() is None:
            run.kill()
        run.communicate()


def remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def workers(run):
    """A run's workers, forks of a server or not, that have begun: each leads a group.

    What a worker has forked, and has not yet become another program, has its command line too.
    """
    found = []
    for child in run.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            *_, module, number = ["", *child.cmdline()]
            forked = number.isdigit() and child.ppid() != run.pid
            is_worker = (module if forked else number) == "exporter.pipeline.worker"
            found += [child] if is_worker and os.getpgid(child.pid) == child.pid else []
    return found


def wait_for(condition, run):
    end = time.monotonic() + 120
    while not (met := condition()):
        assert run.poll() is None, "it ended before it came there"
        assert time.monotonic() < end
        time.sleep(0.01)
    return met


def nothing_is_half_made(*folders):
    for folder in folders:
        assert list(folder.rglob(".*")) == []
        for manifest in folder.rglob("manifest.json"):
            assert damage(manifest.parent, read_manifest(manifest.parent)) == []
    for path in folders[0].iterdir():
        assert path.name in ("logs", "job.json", "figures") or (path / "manifest.json").is_file(), path


def is_gone(process):
    """Ended, and not only waiting for whoever takes a dead parent's children."""
    psutil.wait_procs([process], timeout=10)
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
@pytest.mark.parametrize("phase", WHERE)
def test_an_interrupt_leaves_nothing_behind(start, out, tmp_path, phase, number):
    cache = tmp_path / "cache"  # where no other test has left anything
    run, worker = start(phase, out, cache=cache)
    run.send_signal(number)
    printed, told = run.communicate(timeout=20)
    assert run.returncode == 130, told
    assert printed == ""
    assert after_steps(told) == "interrupted: what was unfinished has been removed"
    assert is_gone(worker)
    nothing_is_half_made(out, cache)


def test_an_interrupt_while_merging_leaves_nothing_in_the_cache(start, tiny, tmp_path):
    cache = tmp_path / "cache"  # without another test's merged checkpoint, which would be used again
    run, worker = start("merge", tmp_path / "out", "--adapter", tiny / "adapter", cache=cache)
    run.send_signal(signal.SIGINT)
    _, told = run.communicate(timeout=20)
    assert (run.returncode, after_steps(told)) == (130, "interrupted: what was unfinished has been removed")
    assert is_gone(worker)
    nothing_is_half_made(tmp_path / "out", cache)


def test_after_kill_9_the_workers_end_and_the_next_run_sweeps_and_succeeds(start, run_cli, cache, tiny, out):
    run, worker = start("export", out)
    run.kill()
    run.wait()
    worker.resume()
    assert is_gone(worker)
    left = [path.name for path in out.iterdir() if path.name.endswith(".tmp")]
    assert left, "nothing to sweep: the test came too late"
    assert not (out / "onnx-fp32").exists()
    again = run_cli("run", *SMALL, "-m", tiny, "-t", "onnx:fp32", "-o", out)
    assert again.returncode == 0, again.stderr
    assert list(out.rglob(".*")) == []


def test_kill_9_before_the_worker_listens(tiny, tmp_path):
    """The request is in the pipe already when the parent dies."""
    run = psutil.Popen(
        [sys.executable, "-m", "exporter", "run", "-m", str(tiny), "-o", str(tmp_path / "out")],
        env=alone(),
        stderr=subprocess.PIPE,
        text=True,
    )
    (worker,) = wait_for(lambda: workers(run), run)
    run.kill()
    run.communicate()
    assert is_gone(worker)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_crash_while_exporting_is_a_failed_row_and_the_others_are_built(start, out, number):
    run, worker = start("export", out, "-t", "onnx:int8-weight")
    worker.send_signal(number)
    if number != signal.SIGKILL:
        worker.resume()
    _, told = run.communicate(timeout=120)
    assert run.returncode == 4
    report = json.loads((out / "report.json").read_text())
    rows = {f"{row['target']}:{row['precision']}": row for row in report["results"]}
    assert rows["onnx:fp32"]["status"] == "failed"
    assert f"the worker of export_artifact was killed by {number.name}" in rows["onnx:fp32"]["reason"]
    assert f"killed by {number.name}" in " ".join(told.split())
    assert rows["onnx:int8-weight"]["status"] == "ok"
    assert (out / "onnx-int8-weight" / "onnx" / "model.onnx").is_file()
    assert not (out / "onnx-fp32").exists()
    assert list(out.rglob(".*")) == []


def test_a_rerun_reuses_what_is_whole_and_rebuilds_what_is_damaged(run_cli, tiny, out):
    def run():
        done = run_cli("run", *SMALL, "-m", tiny, "-t", "onnx:fp32", "-t", "onnx:int8-weight", "--force", "-o", out)
        assert done.returncode == 0, done.stderr
        return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/manifest.json")}

    first = run()
    for name in ("reference/reference.npz", "onnx-fp32/onnx/model.onnx"):
        os.truncate(out / name, 1000)
    second = run()
    assert first["onnx-int8-weight"] == second["onnx-int8-weight"]  # not exported again
    assert first["onnx-fp32"] < second["onnx-fp32"]
    assert first["reference"] < second["reference"]
    for folder in second:
        assert damage(out / folder, read_manifest(out / folder)) == []


def test_a_disk_that_is_too_small_is_refused_up_front(run_cli, mounted, tiny):
    disk = mounted("size=5m")
    done = run_cli("run", *SMALL, "-m", tiny, "-t", "onnx:fp32", "-o", disk / "out")
    assert done.returncode == 4
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"error: the disk of {disk}/out is too full: this job needs about 15 MB, and ")
    assert not any(path.name != "logs" for path in (disk / "out").glob("*"))


def test_a_cache_disk_that_is_too_small_is_refused_up_front(run_cli, mounted, tiny, tmp_path):
    disk = mounted("size=5m")
    done = run_cli(
        "run",
        *SMALL,
        "-m",
        tiny,
        "--adapter",
        tiny / "adapter",
        "-o",
        tmp_path / "out",
        env={"EXPORTER_CACHE": str(disk)},
    )
    assert done.returncode == 4
    assert len(done.stderr.splitlines()) == 1
    assert f"the disk of {disk}/checkpoints is too full" in done.stderr


@pytest.mark.parametrize("phase", ["reference", "export"])
def test_a_disk_that_fills_up_while_it_works(start, mounted, phase):
    disk = mounted("size=40m")
    run, worker = start(phase, disk / "out")
    fill(disk)
    worker.resume()
    _, told = run.communicate(timeout=120)
    assert run.returncode == 4, told
    assert "Traceback" not in told
    last = told.splitlines()[-1]
    assert last.startswith("error: ")
    assert "the disk is full" in last
    assert "free some space and run again" in last
    nothing_is_half_made(disk / "out")


def test_a_cache_disk_that_fills_up_while_merging(start, mounted, tiny, tmp_path):
    disk = mounted("size=40m")
    run, worker = start("merge", tmp_path / "out", "--adapter", tiny / "adapter", cache=disk)
    fill(disk)
    worker.resume()
    _, told = run.communicate(timeout=120)
    assert run.returncode == 4, told
    assert the_error(told).startswith("error: the disk is full")
    nothing_is_half_made(tmp_path / "out", disk / "checkpoints")


def fill(disk):
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
