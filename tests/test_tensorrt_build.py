"""Engines of small models of other families, which TensorRT-RTX builds; and of none, where it cannot."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers

from exporter import Job, targets
from exporter.errors import BuildError
from exporter.types import FEATURES, GENERATION, Checkpoint, ExportRequest

pytestmark = pytest.mark.usefixtures("tensorrt_rtx")
SIZES = {"vocab_size": 184, "max_position_embeddings": 512}
FAMILIES = {
    "LlamaForCausalLM": transformers.LlamaConfig(
        **SIZES, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, rope_theta=50_000.0,
    ),
    "GPT2LMHeadModel": transformers.GPT2Config(vocab_size=184, n_embd=64, n_layer=2, n_head=4, n_positions=512),
    "BertModel": transformers.BertConfig(
        **SIZES, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    ),
}  # fmt: skip


def exported(checkpoint, task, folder, precision="fp16", **options):
    """What the target writes and says, in this process; the folder can be opened afterwards."""
    target = targets.get("tensorrt-rtx")
    told = Job(model="tiny", output="out", **options).options(target.options)
    folder.mkdir()
    source = Checkpoint(checkpoint, task, "model", "0" * 64, 1)
    steps = []
    request = ExportRequest(source, precision, folder, folder, 1, told, progress=lambda *step: steps.append(step))
    made = target.export(request)
    (folder / "manifest.json").write_text(json.dumps({"task": task, "variant": f"tensorrt-rtx:{precision}"}))
    return made, steps


@pytest.mark.parametrize("architecture", FAMILIES)
def test_family(architecture, tmp_path):
    """An engine is built, and the graph that it was built from answers as PyTorch does."""
    transformers.set_seed(0)
    model = getattr(transformers, architecture)(FAMILIES[architecture]).eval()
    model.save_pretrained(tmp_path / "model")
    encoder = architecture == "BertModel"
    made, steps = exported(tmp_path / "model", FEATURES if encoder else GENERATION, tmp_path / "artifact")
    assert made.weights == ("model.plan",)
    assert made.build["built_by"].startswith("tensorrt-rtx ")
    assert (tmp_path / "artifact" / "model.plan").stat().st_size == made.build["engine_bytes"] > 100_000
    assert any("building" in what and done == total > 0 for what, done, total in steps), steps
    with targets.get("tensorrt-rtx").open(tmp_path / "artifact", 1) as runner, torch.no_grad():
        for length in (1, 7, 40):
            ids = np.arange(4, 4 + length)
            answer = model(input_ids=torch.tensor(ids[None]))
            expected = (answer.last_hidden_state if encoder else answer.logits)[0].numpy()
            assert np.abs(runner.logits(ids) - expected).max() < 0.02
        if not encoder:
            steps = [runner.prefill(ids[:9]), *(runner.step(int(token)) for token in ids[9:])]
            assert np.abs(np.stack(steps) - expected[8:]).max() < 0.02


def test_an_engine_that_cannot_be_built_says_the_last_lines_of_its_log(tiny, tmp_path, capfd):
    with pytest.raises(BuildError) as failure:
        exported(tiny, GENERATION, tmp_path / "artifact", trt_workspace="1K")
    assert "could not build the engine" in str(failure.value)
    assert "no tactics to implement the operation within workspace limit" in str(failure.value)
    assert str(failure.value).endswith("allow more with --trt-workspace")
    assert "[ERROR] " in (tmp_path / "artifact" / "build.log").read_text()
    assert "[ERROR] " in capfd.readouterr().err  # which is OUT/logs/…export.log: the folder itself is gone
