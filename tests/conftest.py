"""What several test files use: the shipped model, a cache that is nobody's, and what a command says."""

import json
import os
import re
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

from exporter import forkserver, lock

pytest_plugins = ("forkservers", "quick", "running", "exports", "alone", "skips")
# In the tests' own process: threads that wait for one another take longer than these matrices.
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
SMALL = ("--no-speed", "--eval-tokens", 256, "--threads", 1)
# A step that is done, and how long it took; of one that takes long, on a busy machine, how far it is.
STEP = re.compile(r"\[\d+/\d+\] .+  \d+\.\d s\n|(\[\d+/\d+\] )?.+, (about [\d:]+ left|[\d:]+ so far)\n")


@pytest.fixture(scope="session")
def together(tmp_path_factory):
    """A folder that the processes of one test run have together."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "together"
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def made_by_one(folder):
    """Whether a folder must be made: by this process, while the others of the test run wait for it."""
    with lock.locked(folder, wait=True):
        mark = folder.with_name(f"{folder.name} is made")
        yield not mark.exists()
        mark.touch()


@pytest.fixture(scope="session", autouse=True)
def cache(together):
    """The tests' own $EXPORTER_CACHE: the user's is not touched."""
    folder = together / "cache"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("EXPORTER_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def tiny():
    """The trained model that exporter ships; its LoRA adapter is the folder `adapter` in it."""
    return ROOT / "models" / "tiny"


@pytest.fixture(scope="session")
def demo(run_cli, together):
    """The output folder of the main job on the shipped model with its adapter, to every precision there is."""
    output = together / "demo" / "out"
    with made_by_one(output.parent) as needed:
        if needed:
            done = run_cli(
                "run", "-m", "tiny", "--adapter", "models/tiny/adapter",
                "--eval-text", "models/tiny/adapter/eval.txt", "--eval-tokens", "4096", "--calib-tokens", "4096",
                "--repeats", "1", "--threads", "1", "-t", "torch:all", "-t", "onnx:all", "-o", output,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
            assert "report.html" in done.stdout
    return output


def alone(**more):
    """This environment without the servers that the tests share: of a run whose workers are its own descendants."""
    return {name: value for name, value in os.environ.items() if name != forkserver.SHARED} | more


def last_json(done):
    """The result of a command that was asked for JSON."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def after_steps(stderr):
    """What is told besides the steps that were done."""
    return "".join(line for line in stderr.splitlines(keepends=True) if not STEP.fullmatch(line)).strip()


def the_error(stderr):
    """The one line that says what is wrong, after those of the steps that were done."""
    *steps, line = stderr.splitlines(keepends=True)
    assert [step for step in steps if not STEP.fullmatch(step)] == [], stderr
    assert line.startswith("error: ")
    return line


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def refused(run_cli, run_here, out):
    """Runs a job that cannot work, and returns the one line that says why; under an `env` as a process of its own."""

    def run(*args, status=2, output=out, env=None):
        command = ("run", *SMALL, "-o", output, *args)
        done = run_cli(*command, env=env) if env else run_here(*command)
        assert (done.returncode, done.stdout) == (status, ""), done.stderr
        line = the_error(done.stderr)
        assert {path.name for path in out.glob("*")} <= {"logs", "job.json"}
        return line

    return run


@pytest.fixture
def model(tiny, tmp_path):
    """A folder of links to the tiny model's files, as in the hub's cache; `config` changes keys, None drops one."""

    def make(name="model", without=(), **config):
        folder = tmp_path / name
        folder.mkdir()
        for path in tiny.iterdir():
            if path.is_file() and path.name not in without:
                (folder / path.name).symlink_to(path)
        if config:
            changed = json.loads((tiny / "config.json").read_text()) | config
            kept = {key: value for key, value in changed.items() if value is not None}
            rewrite(folder / "config.json", json.dumps(kept))
        return folder

    return make


def rewrite(path, content):
    """Puts a file of its own in the place of a link."""
    path.unlink(missing_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture
def mounted(tmp_path):
    """Mounts a small disk of its own for a test."""
    folders = []

    def mount(options):
        folder = tmp_path / f"disk{len(folders)}"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", "--lazy", folder], check=True)
