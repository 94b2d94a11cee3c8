"""targets/: the templates travel in the wheel, are found there, and take text of others as values only."""

import shlex
import subprocess
import sys

import jinja2
import pytest
from conftest import ROOT
from test_third_party import install

from exporter.targets.folder.kit import kit, programs, render
from exporter.targets.onnx_graph.traced import BATCH, NEW, PAST, TOTAL
from exporter.targets.tensorrt import serving
from exporter.targets.tensorrt.build import How
from exporter.targets.tensorrt.platform import RTX, TENSORRT
from exporter.targets.tensorrt.profile import Port, Profile

SUFFIXES = (".jinja", ".py", ".mjs")


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in SUFFIXES)


FILES = files(ROOT / "targets")


def test_they_travel_in_the_wheel(tmp_path):
    install(ROOT, tmp_path / "site")
    kits = tmp_path / "site" / "exporter" / "kits"
    assert files(kits) == FILES
    found = "from exporter.targets.folder.kit import kit; print(kit('tensorrt'))"
    done = subprocess.run(
        [sys.executable, "-c", found], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(kits / "tensorrt")


def test_there_is_one_for_each_file_that_is_written():
    assert [name for name in FILES if name.endswith(".jinja")] == [
        "any/artifact.md.jinja", "coreml/README.md.jinja", "gguf/Modelfile.jinja", "gguf/README.md.jinja",
        "litert/README.md.jinja", "onnx/README.md.jinja",
        "tensorrt/README.md.jinja", "tensorrt/both.sh.jinja", "tensorrt/config.pbtxt.jinja",
        "tensorrt/rebuild.sh.jinja", "tensorrt/run.sh.jinja", "torch/README.md.jinja",
    ]  # fmt: skip
    assert kit("gguf") == ROOT / "targets" / "gguf"


def test_the_programs_of_a_task():
    assert set(programs("onnx", "text-generation")) == {"run.py", "run_genai.py", "run.mjs"}
    assert set(programs("gguf", "feature-extraction")) == {"run.py", "pooling.py"}
    assert programs("tensorrt", "text-generation") == {}


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


@pytest.mark.parametrize(("inputs", "sizes"), [
    ({"x's $(y)": [BATCH, NEW], "fixed": [3]}, "x's $(y):1x128,fixed:3"),
    ({"ids": [BATCH, NEW], "mask": [BATCH, TOTAL], "past": [BATCH, 2, PAST, 64]}, "ids:1x1,mask:1x128,past:1x2x127x64"),
])  # fmt: skip
def test_run_sh_runs_the_engine_beside_it_at_sizes_that_fit_together(inputs, sizes, tmp_path):
    text = serving.run_command(RTX, inputs, Profile.parse("batch=1:1:8,length=1:128:512"))
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    assert shlex.split(text.splitlines()[-1]) == ["tensorrt_rtx", "--loadEngine=model.plan", f"--shapes={sizes}"]
    tool = tmp_path / "bin" / "tensorrt_rtx"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\necho "$PWD" "$@"\n')
    tool.chmod(0o755)
    folder = tmp_path / "an artifact"
    folder.mkdir()
    (folder / "run.sh").write_text(text)
    (folder / "rebuild.sh").write_text("touch model.plan\n")
    done = subprocess.run(
        ["sh", folder / "run.sh"],
        env={"PATH": f"{tool.parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{folder} --loadEngine=model.plan --shapes={sizes}\n"
    assert (folder / "model.plan").exists()


def test_config_pbtxt_quotes_what_a_graph_calls_its_ports(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    inputs, outputs = {'a"b\\{{ c }}': Port(7, ["batch", 3])}, {"logits": Port(1, [1, "length", 256])}
    serving.write_repository(tmp_path, "org/Name", TENSORRT, inputs, outputs)
    assert (tmp_path / "triton" / "Name" / "config.pbtxt").read_text() == (
        'name: "Name"\nbackend: "onnxruntime"\nmax_batch_size: 0\n'
        'input [\n  { name: "a\\"b\\\\{{ c }}" data_type: TYPE_INT64 dims: [ -1, 3 ] }\n]\n'
        'output [\n  { name: "logits" data_type: TYPE_FP32 dims: [ 1, -1, 256 ] }\n]\n'
    )
