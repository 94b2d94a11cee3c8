"""`make demo`: what it installs is enough for what it runs, and what a newcomer reads at its end."""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT

from exporter.targets import known
from exporter.types import GENERATION

pytestmark = pytest.mark.quick

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def recipe(target):
    """The commands of a target of the Makefile, a line each."""
    [text] = re.findall(rf"^{re.escape(target)}:.*\n((?:\t.*\n)+)", MAKEFILE, re.M)
    return [line.strip() for line in text.replace("\\\n", " ").splitlines()]


def command():
    [line] = recipe("demo")
    program, *words = shlex.split(line)
    assert program == "$(BIN)/exporter"
    return words


def test_what_it_builds_needs_the_base_dependencies_alone():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    base = {re.match(r"[\w-]+", one)[0].replace("-", "_") for one in project["dependencies"]}
    words = command()
    asked = [words[number + 1] for number, word in enumerate(words) if word == "-t"]
    assert len(asked) == 4
    for text in asked:
        [variant] = known.parse(text, GENERATION)
        target = known.get(variant.target)
        needed = {*target.requires, *target.precisions[variant.precision].requires}
        needed |= {*target.builds_with(known.defaults(target))}
        assert {name.partition(".")[0] for name in needed} <= base, text


def test_what_it_installs_are_the_base_dependencies_alone():
    installs = [line for line in recipe("$(BASE)") if "pip install" in line]
    assert [shlex.split(line)[-1] for line in installs] == ["torch", "."]
    assert "LLAMA" not in " ".join(recipe("$(BASE)"))  # which needs a compiler


def test_its_command_is_a_job(run_here, tmp_path):
    words = [str(tmp_path / "out") if word == "out/demo" else word for word in command()]
    done = run_here(*words, "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    for variant in ("torch:bf16", "onnx:fp32", "onnx:int8-weight", "onnx:int4-weight"):
        assert f"# export, check and measure {variant}\n" in done.stdout


def shown(program, model, terminal):
    """What is told after a run of a model, on a terminal or in a pipe."""
    code = f"""import sys
sys.argv = [{program!r}]
from exporter.command.show import print_next
from exporter.job import Job
print_next(Job(model={model!r}, adapter="lora", output="out"))
print("end")"""  # a terminal that was told nothing cannot be read
    if not terminal:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.removesuffix("end\n")
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=theirs, check=True)
    os.close(theirs)
    text = os.read(ours, 4096).decode()
    os.close(ours)
    return text.replace("\r\n", "\n").removesuffix("end\n")


@pytest.mark.program
def test_who_tried_the_shipped_model_is_told_how_to_go_on(tmp_path):
    said = shown(".venv/bin/exporter", "tiny", terminal=True)
    assert said.splitlines() == [
        "next: open the report in a browser; your own model (a folder or a hub id):",
        "  .venv/bin/exporter run -m MODEL --adapter LORA -o out/mine",
    ]
    assert shown("/somewhere/export", "tiny", terminal=True).splitlines()[1].startswith("  /somewhere/exporter run ")
    as_module = shown(str(ROOT / "exporter" / "__main__.py"), "tiny", terminal=True).splitlines()[1]
    assert as_module.startswith(f"  {shlex.quote(sys.executable)} -m exporter run ")
    assert shown("exporter", "./llama", terminal=True) == ""  # who has brought a model knows
    assert shown("exporter", "tiny", terminal=False) == ""


@pytest.mark.program
def test_it_is_told_by_its_name_where_a_shell_finds_it(tmp_path, monkeypatch):
    program = tmp_path / "exporter"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert "\n  exporter run -m MODEL" in shown(str(program), "tiny", terminal=True)
    assert f"\n  {Path('/elsewhere/exporter')} run " in shown("/elsewhere/exporter", "tiny", terminal=True)
