"""`make quick` runs what is marked so, and the marks are held to what they say, in both directions."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

HERE = Path(__file__).parent
# What takes its time: a process of this program, an export, torch or an engine in the test's own process.
SLOW = re.compile(
    r"\b(run_cli|run_here|refused|subprocess|run_module|demo)\b"
    r"|(from|import) (torch|peft|transformers|onnx|gguf|coremltools|coreml_models|vision_models)\b|import .*\brun\b"
)


def test_a_quick_test_that_starts_this_program_fails():
    with pytest.raises(pytest.fail.Exception, match="is marked quick and starts Python"):
        subprocess.run([sys.executable, "-c", "import exporter"])


def test_other_programs_are_quick_enough():
    assert subprocess.run(["sh", "-c", "echo here"], capture_output=True, text=True, check=True).stdout == "here\n"


@pytest.mark.parametrize("path", sorted(HERE.glob("test_*.py")), ids=lambda path: path.stem)
def test_a_file_without_the_mark_has_a_reason(path):
    text = path.read_text(encoding="utf-8")
    marked = re.search(r"^pytestmark = pytest\.mark\.quick$", text, re.M)
    assert marked or SLOW.search(text), f"nothing in {path.name} takes long: pytestmark = pytest.mark.quick"
