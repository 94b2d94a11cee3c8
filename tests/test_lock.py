"""Two at a time: in one output folder the second refuses or waits; in the cache it takes what the first has made."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import SMALL

from exporter import lock, store
from exporter.errors import JobError

MAKE = """
import sys, time
from pathlib import Path
from exporter import store
entry = Path(sys.argv[1])
with store.one_maker(entry, lambda holder: print(f"waits for {holder}", flush=True)):
    if store.reusable(entry, "key") is None:
        with store.publish(entry) as building:
            print("makes", flush=True)
            time.sleep(float(sys.argv[2]))
            (building / "weights").write_text("one")
            store.write_manifest(building, "key", ["weights"], {})
"""
HOLD = """
import sys, time
from pathlib import Path
from exporter import lock
with lock.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def start():
    """`start(program, *args)`: another process, once it has said its first word."""
    running = []

    def begin(program, *args):
        command = [sys.executable, "-c", program, *map(str, args)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        assert running[-1].stdout.readline()
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("command", ["run", "merge", "bench", "report"])
def test_the_second_refuses_and_says_who_is_there(start, run_here, tiny, out, command):
    out.mkdir()
    report = '{"schema_version": 2}'
    if command in ("bench", "report"):
        (out / "report.json").write_text(report)
    first = start(HOLD, out, 60)
    flags = {"run": ["-m", tiny, *SMALL, "-o", out], "merge": ["-m", tiny, "--adapter", tiny / "adapter", "-o", out]}
    done = run_here(command, *flags.get(command, [out]))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert done.stderr.startswith(f"error: {out} is in use by exporter's process {first.pid}, since ")
    assert done.stderr.endswith("; wait for it with --wait, or choose another folder\n")
    assert [path.name for path in out.iterdir()] == (["report.json"] if command in ("bench", "report") else [])


def test_the_second_waits_where_it_is_told_to(start, run_here, tiny, out):
    first = start(HOLD, out, 4)
    done = run_here("merge", "-m", tiny, "--adapter", tiny / "adapter", "-o", out, "--wait", "-v")
    assert done.returncode == 0, done.stderr
    assert first.poll() == 0
    assert f"waiting for exporter's process {first.pid}, since " in done.stderr
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_kill_9_frees_it_and_what_stays_is_harmless(start, out):
    first = start(HOLD, out, 60)
    with pytest.raises(JobError, match=f"is in use by exporter's process {first.pid}, since"), lock.locked(out):
        pass
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert [path.name for path in out.parent.iterdir()] == [".out.lock"]
    with lock.locked(out):
        assert f"process {os.getpid()}," in lock.holder(out)
    assert list(out.parent.iterdir()) == []


def test_a_lock_makes_nothing_that_stays(tmp_path):
    with lock.locked(tmp_path / "new" / "folders" / "out"):
        assert (tmp_path / "new" / "folders" / ".out.lock").is_file()
    assert list(tmp_path.iterdir()) == []


def test_many_at_once_are_never_two(tmp_path):
    """The file is removed with the lock: whoever opened it before must not believe that it keeps others out."""
    program = """
import sys
from pathlib import Path
from exporter import lock
out = Path(sys.argv[1])
for _ in range(25):
    with lock.locked(out, wait=True):
        (out.parent / "alone").mkdir()
        (out.parent / "alone").rmdir()
"""
    command = [sys.executable, "-c", program, str(tmp_path / "out")]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in running:
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0, told
    assert list(tmp_path.iterdir()) == []


def test_an_entry_of_the_cache_is_made_once(start, tmp_path):
    first = start(MAKE, tmp_path / "entry", 3)
    second = start(MAKE, tmp_path / "entry", 0)
    printed, told = second.communicate(timeout=60)
    assert second.returncode == 0, told
    assert set(printed.splitlines()) <= {line for line in printed.splitlines() if str(first.pid) in line}
    assert first.communicate(timeout=60) == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]
    assert store.reusable(tmp_path / "entry", "key") is not None


def test_what_is_being_made_is_not_swept_and_what_was_left_is(start, tmp_path):
    """Whoever sweeps, in another container too, where process ids are the same."""
    first = start(MAKE, tmp_path / "entry", 60)
    store.sweep(tmp_path)
    assert sorted(path.name.partition(".entry.")[2][-4:] for path in tmp_path.iterdir()) == [".tmp", "lock"]
    first.send_signal(signal.SIGKILL)
    first.wait()
    store.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_runs_of_one_job_at_once_are_both_right(tiny, tmp_path):
    """Both merge into the same entry of the cache: one does, the other waits for it."""
    cache = tmp_path / "cache"
    commands = [
        [sys.executable, "-m", "exporter", "run", "-m", tiny, "--adapter", tiny / "adapter", *SMALL, "-t", "torch:fp32",
         "-o", tmp_path / name]
        for name in ("a", "b")
    ]  # fmt: skip
    environment = os.environ | {"EXPORTER_CACHE": str(cache)}
    running = [
        subprocess.Popen([*map(str, one)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for one in commands
    ]
    for process in running:
        _, told = process.communicate(timeout=600)
        assert process.returncode == 0, told
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("a", "b")]
    assert reports[0]["model"]["sha256"] == reports[1]["model"]["sha256"]
    assert len([*(cache / "checkpoints").iterdir()]) == 1
    assert not [*cache.rglob(".*")]


@pytest.fixture(scope="module")
def mixed(run_here, tiny, tmp_path_factory):
    """Two outputs of two models under the same names, each whole."""
    place = tmp_path_factory.mktemp("two")
    for name, more in (("plain", ()), ("adapted", ("--adapter", tiny / "adapter"))):
        done = run_here("run", "-m", tiny, *more, *SMALL, "-t", "torch:bf16", "-o", place / name)
        assert done.returncode in (0, 3), done.stderr
        assert run_here("verify", place / name).returncode == 0
    return place


@pytest.mark.parametrize("name", ["torch-bf16", "reference"])
def test_verify_finds_an_artifact_of_another_model(run_here, mixed, tmp_path, name):
    shutil.copytree(mixed / "plain", tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / name)
    shutil.copytree(mixed / "adapted" / name, tmp_path / "out" / name)
    done = run_here("verify", tmp_path / "out")
    assert done.returncode == 2
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert lines[name].startswith("it is of another model (")
    assert [line for other, line in lines.items() if other != name] == ["whole"]


def test_verify_finds_what_the_report_tells_of_and_is_not_there(run_here, mixed, tmp_path):
    shutil.copytree(mixed / "plain", tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "torch-bf16")
    done = run_here("verify", tmp_path / "out", "--format", "json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["torch-bf16"] == ["the report tells of it, and it has no manifest that can be read"]
