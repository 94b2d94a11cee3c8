"""In CI a test that was skipped is a test that failed, but for those that need a machine which CI has not."""

import os
import sys

import pytest

# What CI's machine, Linux without a GPU, cannot have; anything else it can be given.
EXPECTED = ("no CUDA device", "Core ML predicts on macOS alone")
STRICT = os.environ.get("CI") == "true" and sys.platform == "linux"
_skipped: list[str] = []


def _note(report):
    reason = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else ""
    if reason and not hasattr(report, "wasxfail") and not any(one in reason for one in EXPECTED):
        _skipped.append(f"{report.nodeid}: {reason}")


def pytest_runtest_logreport(report):
    _note(report)


def pytest_collectreport(report):
    _note(report)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """Where tests are shared out the first process alone decides: the others' reports all come to it."""
    if STRICT and _skipped and not hasattr(session.config, "workerinput"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    for line in _skipped if STRICT else ():
        terminalreporter.write_line(f"skipped, though CI must run it: {line}", red=True)
