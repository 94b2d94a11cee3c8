"""What `make quick` runs, in which order all the others run, and which tests need a device."""

import os
import sys
from pathlib import Path

import pytest

# What `make quick` leaves out of the files that are marked quick: tests with a fixture that starts exporter or exports,
# and those that say of themselves that they start a program.
NOT_QUICK = {"run_cli", "run_here", "policied", "trt_write", "converter_cache"}
QUICK_LIMIT = 20  # seconds of one quick test, on a busy machine too
# Two processes take a file after the other (Makefile): the longest come first, so that both end together.
FIRST = (
    "test_real", "test_pipeline", "test_readme", "test_encoders", "test_families", "test_gguf_run", "test_interrupt",
    "test_merge_command", "test_quantizing", "test_preparations", "test_tensorrt", "test_tensorrt_graph", "test_onnx",
    "test_gguf_families",
)  # fmt: skip
_quick: list[str] = []  # the quick test that runs now


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
    places = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(FIRST)))  # the others stay as they are
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
    skipped = [
        report for report in terminalreporter.stats.get("skipped", ()) if "gpu" in getattr(report, "keywords", ())
    ]
    for report in skipped:
        terminalreporter.write_line(f"not run, no CUDA device: {report.nodeid}")
