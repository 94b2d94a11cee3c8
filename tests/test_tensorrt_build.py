"""Engines of small models of other families, which TensorRT-RTX builds; and of none, where it cannot."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
import transformers

from exporter import Job, run
from exporter.errors import BuildError
from exporter.targets import known
from exporter.targets.tensorrt.build import parse
from exporter.targets.tensorrt.log import Log, count_layers, layers_of_inspector
from exporter.targets.tensorrt.platform import RTX
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
    target = known.get("tensorrt-rtx")
    told = target.options(**options)
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
    with known.get("tensorrt-rtx").open(tmp_path / "artifact", 1) as runner, torch.no_grad():
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
        exported(tiny, GENERATION, tmp_path / "artifact", workspace="1K")
    assert "could not build the engine" in str(failure.value)
    assert "no tactics to implement the operation within workspace limit" in str(failure.value)
    assert str(failure.value).endswith("allow more with --tensorrt-rtx-workspace")
    assert "[ERROR] " in (tmp_path / "artifact" / "build.log").read_text()
    assert "[ERROR] " in capfd.readouterr().err  # which is OUT/logs/…export.log: the folder itself is gone


def test_what_is_known_of_an_engine_that_failed_stays_in_its_row(tmp_path):
    small = {"eval_tokens": 256, "window": 64, "threads": 1, "speed": False}
    options = {"tensorrt-rtx": {"workspace": "1K"}}
    report = run(Job(model="tiny", target="tensorrt-rtx", output=tmp_path / "out", **options, **small))
    row = report["results"][-1]
    assert (row["status"], report["exit_status"]) == ("failed", 4)
    built = row["build"]["engine"]
    assert (built["parsed"], built["refused"], built["built_by"], built["engine_bytes"]) == (True, [], None, None)
    assert built["onnx_bytes"] > 100_000
    assert "no engine (see why above)" in (tmp_path / "out" / "report.md").read_text()
    assert not list((tmp_path / "out").glob("tensorrt-rtx*"))


def test_a_parsers_refusal_names_the_operators(tmp_path):
    text = "<ir_version: 10, opset_import: ['' : 23]> g (float[4, 4] x) => (float y) { y = Det(x) }"
    onnx.save(onnx.parser.parse_model(text.replace("'", '"')), tmp_path / "model.onnx")
    with pytest.raises(BuildError) as failure:
        parse(RTX, tmp_path / "model.onnx", Log(RTX.load()))
    assert failure.value.build["parsed"] is False
    assert any("Det" in line for line in failure.value.build["refused"]), failure.value.build


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ({"Format/Datatype": "Half"}, "Half"),
        ({"Format/Datatype": "Row major linear FP16 format"}, "FP16"),
        ({"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}, "Int8"),
        ({"Format/Datatype": "N/A due to dynamic shapes"}, "N/A due to dynamic shapes"),
        ({"Format": "Row major linear", "Datatype": "Half"}, "Half"),
    ],
)
def test_types_that_an_inspector_names(written, read):
    """In the JSON of TensorRT 10 and of 11, as NVIDIA documents it; its own needs a GPU."""
    layer = {"Name": "fc", "LayerType": "gemm", "Inputs": [written], "Outputs": [written]}
    (found,) = layers_of_inspector({"Layers": [layer, "a name alone"]})
    assert (found["inputs"], found["outputs"]) == ([read], [read])
    assert count_layers([found], "it")["by_precision"] == {read: 1}
