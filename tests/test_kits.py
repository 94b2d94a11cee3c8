"""targets/: the templates travel in the wheel, are found there, and take text of others as values only."""

import shlex
import subprocess
import sys

import jinja2
import pytest
from conftest import ROOT
from test_third_party import install

from exporter.targets.folder.kit import kit, render
from exporter.targets.tensorrt import serving
from exporter.targets.tensorrt.build import How
from exporter.targets.tensorrt.platform import RTX, TENSORRT
from exporter.targets.tensorrt.profile import Port

TEMPLATES = sorted(path.relative_to(ROOT / "targets").as_posix() for path in (ROOT / "targets").rglob("*.jinja"))


def test_they_travel_in_the_wheel(tmp_path):
    install(ROOT, tmp_path / "site")
    kits = tmp_path / "site" / "exporter" / "kits"
    assert sorted(path.relative_to(kits).as_posix() for path in kits.rglob("*.jinja")) == TEMPLATES
    found = "from exporter.targets.folder.kit import kit; print(kit('tensorrt'))"
    done = subprocess.run(
        [sys.executable, "-c", found], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(kits / "tensorrt")


def test_there_is_one_for_each_file_that_is_written():
    assert TEMPLATES == ["gguf/Modelfile.jinja", "tensorrt/config.pbtxt.jinja", "tensorrt/rebuild.sh.jinja"]
    assert kit("gguf") == ROOT / "targets" / "gguf"


def test_a_value_that_nobody_gave_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="weights"):
        render("gguf", "Modelfile", {"quoted": str}, template=None, stops=[], sampling={})


@pytest.mark.parametrize("platform", [TENSORRT, RTX])
def test_rebuild_sh_is_one_command_whatever_an_input_is_called(platform):
    shapes = {"input's; $(x) {{ 7 * 7 }}": ((1, 1), (1, 128), (8, 512)), "plain": ((1,), (2,), (3,))}
    how = How(True, ("sm89", "sm120"), hardware_compatible=True, version_compatible=True, workspace=1024)
    text = serving.rebuild_command(platform, shapes, how)
    assert text.startswith("#!/bin/sh\n# TensorRT's own tool")
    assert text.endswith(" --profilingVerbosity=detailed --skipInference\n")
    words = shlex.split(text.splitlines()[2])
    assert words[0] == platform.tool
    assert words[-10:] == [
        "--minShapes=input's; $(x) {{ 7 * 7 }}:1x1,plain:1", "--optShapes=input's; $(x) {{ 7 * 7 }}:1x128,plain:2",
        "--maxShapes=input's; $(x) {{ 7 * 7 }}:8x512,plain:3", "--noTF32", "--memPoolSize=workspace:1024B",
        "--computeCapabilities=89,120", "--hardwareCompatibilityLevel=ampere+", "--versionCompatible",
        "--profilingVerbosity=detailed", "--skipInference",
    ]  # fmt: skip
    assert ("--stronglyTyped" in words) == (platform is TENSORRT)
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)


def test_config_pbtxt_quotes_what_a_graph_calls_its_ports(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    inputs, outputs = {'a"b\\{{ c }}': Port(7, ["batch", 3])}, {"logits": Port(1, [1, "length", 256])}
    serving.write_repository(tmp_path, "org/Name", TENSORRT, inputs, outputs)
    assert (tmp_path / "triton" / "Name" / "config.pbtxt").read_text() == (
        'name: "Name"\nbackend: "onnxruntime"\nmax_batch_size: 0\n'
        'input [\n  { name: "a\\"b\\\\{{ c }}" data_type: TYPE_INT64 dims: [ -1, 3 ] }\n]\n'
        'output [\n  { name: "logits" data_type: TYPE_FP32 dims: [ 1, -1, 256 ] }\n]\n'
    )
