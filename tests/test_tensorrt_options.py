"""What a user can ask of TensorRT and TensorRT-RTX, and what is said to what neither can do."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from exporter import Job, run
from exporter.errors import JobError
from exporter.pipeline.sections import read_sections
from exporter.targets import known
from exporter.targets.tensorrt.graph import OPERATORS
from exporter.targets.tensorrt.platform import RTX, lacking
from exporter.targets.tensorrt.profile import Profile
from exporter.types import FEATURES, GENERATION, Preparation, Variant

TINY = Path(__file__).resolve().parents[1] / "models" / "tiny"
pytestmark = pytest.mark.usefixtures("tensorrt_rtx")


def test_without_an_engine(tmp_path):
    """TensorRT itself is not needed then; TensorRT-RTX's parser still reads the graph."""
    small = {"eval_tokens": 256, "window": 64, "threads": 1, "speed": False}
    report = run(Job(model="tiny", target="tensorrt", output=tmp_path / "out", tensorrt={"engine": False}, **small))
    row = report["results"][-1]
    assert report["passed"], row
    assert row["target"] == "tensorrt"
    assert row["build"]["engine"]["built_by"] is row["build"]["engine"]["engine_bytes"] is None
    assert row["build"]["engine"]["parsed"] is True
    assert row["build"]["engine"]["parsed_by"].startswith("tensorrt-rtx ")
    assert row["speed"]["untimed"] == "no engine was built (--no-tensorrt-engine)"
    folder = tmp_path / "out" / "tensorrt-fp16"
    assert row["artifact"]["bytes"] == (folder / "model.onnx").stat().st_size
    assert not (folder / "model.plan").exists()
    assert (folder / "rebuild.sh").read_text().splitlines()[2].startswith("trtexec --onnx=model.onnx ")
    again = known.unavailable(Variant("tensorrt", "fp16"), to_open=True)
    assert again is None, "what is there can be measured again without TensorRT"


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="tensorrt is installed")
def test_without_the_package(refused):
    said = refused("-m", "tiny", "-t", "tensorrt", status=4)
    assert "tensorrt:fp16 needs tensorrt" in said
    assert f"pip install -e '{ROOT}[tensorrt]'" in said
    assert "NVIDIA's own package index" in said
    assert "--target tensorrt-rtx" in said


def prepared(name, task=GENERATION, **section):
    """What is said to a job's section before any work: by its model, then by the target."""
    options = read_sections(Job(model="tiny", output="out", **{name: section})).targets[name]
    return known.get(name).prepare(Preparation(TINY, {}, task, "fp16", options, Path("cache"), True, 512, None))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"compute_capability": "sm98"}, "-compute-capability: unknown compute capability 'sm98'; did you mean sm89"),
        ({"compute_capability": "sm80,SM89"}, "-compute-capability 'SM89': give names such as sm80,sm89"),
        ({"compute_capability": 89}, "-compute-capability 89: input should be a valid tuple"),
        ({"profile": "length=1:128:512"}, "-profile 'length=1:128:512': it names no batch; give all, as in batch="),
        ({"profile": "batch=1:1:8,lenght=1:2:3"}, "unknown size 'lenght'; did you mean length?"),
        ({"profile": "batch=1:9:8,length=1:2:600"}, "batch=1:9:8: the sizes must be at least 1 and in order"),
        ({"profile": "batch=1:1:8,length=1:2"}, "'length=1:2': give NAME=MIN:OPT:MAX"),
        ({"profile": "batch=1:1:8,batch=1:1:8"}, "names batch twice"),
        ({"profile": "batch=1:1:8,length=2:2:600"}, "-profile: batch and length must begin at 1"),
        ({"profile": "batch=1:1:8,length=1:64:128"}, "measured on texts of 512 tokens; raise the profile's"),
        ({"workspace": "4Gi"}, "-workspace '4Gi': give a number of bytes"),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_a_wrong_option(options, says):
    with pytest.raises(JobError, match=re.escape(says)) as error:
        prepared("tensorrt-rtx", **options)
    assert str(error.value).startswith("--tensorrt-rtx-")


def test_each_of_the_two_has_its_own():
    assert prepared("tensorrt-rtx") is None
    assert prepared("tensorrt-rtx", compute_capability=["sm80,sm89", "sm120"]) is None
    assert prepared("tensorrt", engine=False, version_compatible=True, hardware_compatible=True) is None
    for name, option in (("tensorrt-rtx", "hardware_compatible"), ("tensorrt", "compute_capability")):
        with pytest.raises(JobError, match=f"^unknown option of {name} '{option}'"):
            prepared(name, **{option: "x"})
    fixed = "batch=8:8:8,length=16:16:600"  # an encoder may have it: smaller batches are filled up
    assert prepared("tensorrt-rtx", FEATURES, profile=fixed) is None


def test_operators_are_asked_of_the_parser():
    assert lacking(RTX, [*OPERATORS, "Compress"]) == {"Compress"}


def test_a_mistyped_capability_in_the_command(refused):
    said = refused("-m", "tiny", "-t", "tensorrt-rtx", "--tensorrt-rtx-compute-capability", "sm98")
    assert "--tensorrt-rtx-compute-capability: unknown compute capability 'sm98'; did you mean sm89" in said


def test_batches_are_cut_and_filled_to_the_profile():
    profile = Profile.parse("batch=4:4:6,length=1:2:3")
    seen = []

    def forward(ids, mask):
        seen.append(len(ids))
        assert (mask == 1).all()
        return (ids * 2).astype(np.float32)

    ids = np.arange(14).reshape(7, 2)
    assert (profile.batched(ids, np.ones_like(ids), forward) == ids * 2).all()
    assert seen == [6, 4]
