"""What a user can ask of TensorRT and TensorRT-RTX, and what is said to what neither can do."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from exporter import Job, run
from exporter.errors import JobError
from exporter.targets import known
from exporter.targets.tensorrt.graph import OPERATORS
from exporter.targets.tensorrt.platform import RTX, lacking
from exporter.targets.tensorrt.profile import Profile
from exporter.types import FEATURES, GENERATION, Preparation, Variant

TINY = Path(__file__).resolve().parents[1] / "models" / "tiny"
pytestmark = pytest.mark.usefixtures("tensorrt_rtx")


def test_without_an_engine(tmp_path):
    """TensorRT itself is not needed then; TensorRT-RTX's parser still reads the graph."""
    small = {"eval_tokens": 256, "window": 64, "threads": 1}
    report = run(Job(model="tiny", target="tensorrt", output=tmp_path / "out", engine=False, **small))
    row = report["results"][-1]
    assert report["passed"], row
    assert row["target"] == "tensorrt"
    assert row["build"]["engine"]["built_by"] is row["build"]["engine"]["engine_bytes"] is None
    assert row["build"]["engine"]["parsed"] is True
    assert row["build"]["engine"]["parsed_by"].startswith("tensorrt-rtx ")
    assert row["speed"]["untimed"] == "no engine was built (--no-engine)"
    folder = tmp_path / "out" / "tensorrt-fp16"
    assert row["artifact"]["bytes"] == (folder / "model.onnx").stat().st_size
    assert not (folder / "model.plan").exists()
    assert (folder / "rebuild.sh").read_text().splitlines()[2].startswith("trtexec --onnx=model.onnx ")
    again = known.unavailable(Variant("tensorrt", "fp16"), None)
    assert again is None, "what is there can be measured again without TensorRT"


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="tensorrt is installed")
def test_without_the_package(refused):
    said = refused("-m", "tiny", "-t", "tensorrt", status=4)
    assert "tensorrt:fp16 needs tensorrt" in said
    assert "pip install 'exporter[tensorrt]'" in said
    assert "NVIDIA's own package index" in said
    assert "--target tensorrt-rtx" in said


def prepared(name, task=GENERATION, **options):
    """What the target says to a job's options before any work; the defaults are Job's."""
    target = known.get(name)
    told = Job(model="tiny", output="out", **options).options(target.options)
    return target.prepare(Preparation(TINY, {}, task, "fp16", told, Path("cache"), True, window=512))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"trt_compute_capability": "sm98"}, "unknown compute capability 'sm98'; did you mean sm89"),
        ({"trt_compute_capability": "sm80,SM89"}, "unknown compute capability 'SM89'"),
        ({"trt_profile": "length=1:128:512"}, "names no batch; give all, as in batch="),
        ({"trt_profile": "batch=1:1:8,lenght=1:2:3"}, "unknown size 'lenght'; did you mean length?"),
        ({"trt_profile": "batch=1:9:8,length=1:2:600"}, "batch=1:9:8: the sizes must be at least 1 and in order"),
        ({"trt_profile": "batch=1:1:8,length=1:2"}, "'length=1:2': give NAME=MIN:OPT:MAX"),
        ({"trt_profile": "batch=1:1:8,batch=1:1:8"}, "names batch twice"),
        ({"trt_profile": "batch=1:1:8,length=2:2:600"}, "batch and length must begin at 1"),
        ({"trt_profile": "batch=1:1:8,length=1:64:128"}, "measured on texts of 512 tokens; raise the profile's"),
        ({"trt_workspace": "4Gi"}, "--trt-workspace '4Gi': give a number of bytes"),
    ],
    ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else "",
)
def test_a_wrong_option(options, says):
    with pytest.raises(JobError, match=re.escape(says)):
        prepared("tensorrt-rtx", **options)


def test_what_only_one_of_the_two_has():
    assert prepared("tensorrt-rtx") is None
    assert "--trt-hardware-compatible is TensorRT's" in prepared("tensorrt-rtx", trt_hardware_compatible=True)
    assert "--trt-version-compatible is TensorRT's" in prepared("tensorrt-rtx", trt_version_compatible=True)
    assert prepared("tensorrt", engine=False, trt_version_compatible=True) is None
    assert "is TensorRT-RTX's" in prepared("tensorrt", engine=False, trt_compute_capability="sm89")
    fixed = "batch=8:8:8,length=16:16:600"  # an encoder may have it: smaller batches are filled up
    assert prepared("tensorrt-rtx", FEATURES, trt_profile=fixed) is None


def test_operators_are_asked_of_the_parser():
    assert lacking(RTX, [*OPERATORS, "Compress"]) == {"Compress"}


def test_a_mistyped_capability_in_the_command(refused):
    said = refused("-m", "tiny", "-t", "tensorrt-rtx", "--trt-compute-capability", "sm98")
    assert "--trt-compute-capability: unknown compute capability 'sm98'; did you mean sm89" in said


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
