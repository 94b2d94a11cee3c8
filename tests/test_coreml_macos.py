"""On a Mac alone: Core ML itself answers as the reference evaluator does, on every compute unit."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from coreml_models import VOCABULARY, export, random_model

from exporter.types import GENERATION

pytestmark = pytest.mark.skipif(sys.platform != "darwin", reason="Core ML predicts on macOS alone")
IDS = np.random.default_rng(0).integers(1, VOCABULARY, 40)


@pytest.mark.parametrize("units", ["cpu", "gpu", "ane"])
@pytest.mark.parametrize("precision", ["fp16", "int8", "int4", "palettize4"])
@pytest.mark.parametrize("kind", ["llama", "gemma3", "bert"])
def test_both_answer_alike(kind, precision, units, tmp_path, monkeypatch):
    from exporter.targets.coreml.mil.runner import open_mil
    from exporter.targets.coreml.predict import COMPUTE_UNITS, UNITS, open_predict

    monkeypatch.setenv(UNITS, units)
    checkpoint, task = random_model(tmp_path / kind, kind)
    export(checkpoint, task, precision, tmp_path / "artifact", tmp_path / "scratch")
    package = tmp_path / "artifact" / "model.mlpackage"
    with open_predict(package, task) as own, open_mil(package, 1, True, task) as reference:
        assert COMPUTE_UNITS[units] in own.engine
        expected = reference.logits(IDS)
        assert np.abs(own.logits(IDS) - expected).max() < 0.02 * np.abs(expected).max()
        if task == GENERATION:
            steps = [own.prefill(IDS[:20]), *(own.step(int(token)) for token in IDS[20:])]
            assert np.abs(np.stack(steps) - expected[19:]).max() < 0.02 * np.abs(expected).max()
