"""A virtual environment of what only measures: bench/measuring.txt, ONNX Runtime and exporter, and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

LIST = ROOT / "bench" / "measuring.txt"


def listed():
    lines = LIST.read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def closure(names):
    """What pip would bring with them, by the metadata of what is installed here."""
    found, left = {}, list(names)
    while left:
        name = left.pop().lower()
        if name not in found:
            found[name] = metadata.distribution(name)
            needs = map(Requirement, found[name].requires or [])
            left += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found.values()


def place(distribution, site):
    """The same files, linked: a folder or a module each, as pip lays them out, with their metadata."""
    for name in {Path(file).parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
        link = site / name
        if not link.exists():
            link.symlink_to(Path(str(distribution.locate_file(name))).resolve())


def as_wheel(distribution, folder):
    """What is installed of a distribution, as a wheel again (PEP 427): nothing is fetched."""
    files = [str(file) for file in distribution.files or () if ".." not in file.parts and file.suffix != ".pyc"]
    [info] = {Path(file).parts[0] for file in files if file.endswith(".dist-info/METADATA")}
    left_out = {f"{info}/{name}" for name in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")}
    kept = [file for file in files if file not in left_out]
    *_, tag = re.findall(r"^Tag: (.+)$", distribution.read_text("WHEEL"), re.M)  # the newest of Python or of Linux
    with zipfile.ZipFile(folder / f"{info.removesuffix('.dist-info')}-{tag}.whl", "w") as archive:
        for file in kept:
            archive.write(distribution.locate_file(file), file)
        archive.writestr(f"{info}/RECORD", "".join(f"{file},,\n" for file in [*kept, f"{info}/RECORD"]))


def environment(folder, runtime):
    """A virtual environment of its own in `folder`, and its Python; `runtime`: what brings ONNX Runtime there."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(folder), "platbase": str(folder)}))
    for one in closure([*(need.name for need in listed()), runtime]):
        place(one, site)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    offline = ["--no-deps", "--no-index"]
    subprocess.run([*pip, "wheel", "--no-build-isolation", *offline, "-w", folder / "own", ROOT], check=True)
    [wheel] = (folder / "own").glob("*.whl")
    subprocess.run([*pip, "--python", python, "install", *offline, wheel], check=True)
    return python


@pytest.fixture(scope="session")
def measured(run_cli, together):
    """An output folder of the shipped model with artifacts for torch and ONNX, measured on its own text."""
    from conftest import made_by_one

    output = together / "measured" / "out"
    with made_by_one(output.parent) as needed:
        if needed:
            done = run_cli(
                "run", "-m", "tiny", "-t", "torch:bf16", "-t", "onnx:fp32", "-t", "onnx:int4-weight", "-o", output,
                "--policy", "off", "--no-speed", "--eval-tokens", 512, "--calib-tokens", 512, "--threads", 1,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
    return output
