"""onnxruntime and onnxruntime-gpu, which share a folder: what doctor tells of them, and that its commands mend it.

Installed by pip itself, from wheels of that name and folder that hold nothing: the GPU's real one is 256 MB.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata

import pytest
from conftest import ROOT, last_json

from exporter.onnxruntimes import CPU, GPU, library_path

FOUND = """
import json; from exporter import onnxruntimes as o
f = o.found()
print(json.dumps({"packages": f.packages, "built": f.built, "whole": f.whole, "cuda": f.cuda, "changes": f.changes(),
                  "troubles": o.troubles([])}))
"""
BUILDS = {CPU: "", GPU: "cuda_version = '13.0'\n"}


def wheel(folder, name, version="1.31.0"):
    """A wheel as the format has it (PEP 427); pip itself installs it."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    files = {
        "onnxruntime/__init__.py": f"# of {name}\n",
        "onnxruntime/capi/build_and_package_info.py": f"package_name = '{name}'\n{BUILDS[name]}",
        f"onnxruntime/only_{len(name)}.txt": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


def installed(site, name):
    """The same, laid out as pip would."""
    site.mkdir(exist_ok=True)
    wheel(site, name)
    [made] = site.glob("*.whl")
    with zipfile.ZipFile(made) as archive:
        archive.extractall(site)
    made.unlink()
    return site


@pytest.fixture
def told(run_cli):
    """What doctor says with folders in front on the path."""

    def ask(*sites, **environment):
        path = os.pathsep.join(map(str, sites))
        return last_json(run_cli("doctor", "--format", "json", env={"PYTHONPATH": path} | environment))

    return ask


def lines_of(facts):
    return [line for line in facts["troubles"] if CPU in line]


def test_each_command_leads_to_one_package_alone(tmp_path):
    wheels, venv = tmp_path / "wheels", tmp_path / "venv"
    wheels.mkdir()
    for name in BUILDS:
        wheel(wheels, name)
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    environment = {"PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}", "PIP_NO_INDEX": "1"}
    environment |= {"PIP_FIND_LINKS": str(wheels), "HOME": str(tmp_path)}

    def shell(command):
        subprocess.run(["bash", "-c", command], env=environment, check=True, capture_output=True)

    def found():
        python = [venv / "bin" / "python", "-c", FOUND]
        done = subprocess.run(python, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    nothing = found()
    assert (nothing["packages"], nothing["built"], nothing["troubles"]) == ({}, None, [])
    assert nothing["changes"] == {CPU: "pip install 'onnxruntime>=1.24'", GPU: "pip install 'onnxruntime-gpu>=1.31'"}
    shell(nothing["changes"][CPU])
    for _ in range(2):  # there and back, and there again
        before = found()
        assert before["troubles"] == []
        assert before["whole"]
        [(other, command)] = before["changes"].items()
        shell(command)
        assert found()["packages"] == {other: "1.31.0"}
        assert found()["cuda"] == ("13.0" if other == GPU else None)
    for wanted in BUILDS:
        shell(f"pip install {CPU} {GPU}")
        both = found()
        assert set(both["packages"]) == {CPU, GPU}
        assert not both["whole"]
        [line] = both["troubles"]
        assert f"{CPU} and {GPU} share one folder and break each other" in line
        assert both["changes"][wanted] in line
        shell(both["changes"][wanted])
        assert found()["whole"]
        assert found()["built"] == wanted
    shell(f"pip install {CPU} {GPU} && pip uninstall -y {GPU}")  # it takes the files of both along
    half = found()
    assert half["packages"] == {CPU: "1.31.0"}
    assert not half["whole"]
    [line] = half["troubles"]
    assert line.startswith("onnxruntime is installed, and its files are not, or not all")
    shell(half["changes"][CPU])
    assert found()["troubles"] == []


def test_cuda_s_libraries_are_found_wherever_on_the_path(tmp_path, monkeypatch):
    """pip lays them out as nvidia/cu13/lib and nvidia/cudnn/lib; a machine's may be behind a virtual environment's."""
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    monkeypatch.setattr("sys.path", [str(tmp_path / "venv"), str(tmp_path / "system")])
    assert library_path() == {}
    folders = [tmp_path / "system" / "nvidia" / name / "lib" for name in ("cu13", "cudnn")]
    for folder in folders:
        folder.mkdir(parents=True)
    assert library_path() == {"LD_LIBRARY_PATH": os.pathsep.join(map(str, folders))}
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/cuda")
    assert library_path()["LD_LIBRARY_PATH"].endswith(f"{os.pathsep}/opt/cuda")


def test_doctor_tells_which_is_there_and_how_to_change(told, run_here, tmp_path):
    here = told(ROOT)["onnxruntime"]
    assert here == {
        "package": CPU,
        "version": metadata.version(CPU),
        "built_for_cuda": None,
        "changes": {GPU: "pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu>=1.31'"},
    }
    human = run_here("doctor").stdout
    assert f"onnxruntime {metadata.version(CPU)}, for the CPU alone\n" in human
    assert f"\n{here['changes'][GPU]}\n" in human
    # In front of another on the path it is what is imported, and neither harms the other.
    there = told(ROOT, installed(tmp_path / "site", GPU))
    assert there["onnxruntime"] == {
        "package": GPU,
        "version": "1.31.0",
        "built_for_cuda": "13.0",
        "changes": {CPU: "pip uninstall -y onnxruntime-gpu && pip install 'onnxruntime>=1.24'"},
    }
    assert lines_of(there) == []


def test_doctor_names_the_command_where_a_gpu_waits(told, tmp_path):
    """nvidia-smi's answer in the form that its own help gives; what it is asked for is the test of machine.gpus."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 580.95.05, 81559'\n")
    tool.chmod(0o755)
    path = f"{tool.parent}{os.pathsep}{os.environ['PATH']}"
    facts = told(ROOT, PATH=path)
    [line] = lines_of(facts)
    assert line == (
        "this machine has a GPU (NVIDIA H100 80GB HBM3), and onnxruntime is the build that uses none; for --device "
        "cuda: pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu>=1.31'"
    )
    site = installed(tmp_path / "site", GPU)
    assert lines_of(told(ROOT, site, PATH=path)) == []
    shutil.rmtree(site)
    assert lines_of(told(ROOT, site, PATH=path)) == [line]
