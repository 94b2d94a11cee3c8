"""Static int8 of encoder-decoders, and policies: calibrated on pairs that are cut from one text."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx
import pytest
import text2text_models as made
import torch
import transformers
from onnx import numpy_helper
from test_text2text import checkpoints as checkpoints
from test_text2text import rows_of

from exporter.checkpoint.linear import PAIR, asked
from exporter.quantization.calibrate import paired_windows
from exporter.quantization.folds import find_folds, fold
from exporter.quantization.statistics import collect
from exporter.report.table import value
from exporter.targets.onnx.pair import DECODER, ENCODER


def opened(folder):
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return model, tokenizer, paired_windows(tokenizer, made.text(), 0, 2048, 256)


@pytest.mark.parametrize("family", ["T5", "Bart", "MBart"])
def test_a_window_is_pairs_that_are_read_as_in_training(checkpoints, family):
    model, tokenizer, windows = opened(checkpoints(family))
    assert windows.shape == (8, 256)
    pairs = windows.reshape(-1, PAIR)
    source, target = pairs[:, : PAIR // 2], pairs[:, PAIR // 2 :]
    assert (source[:, -1] == 1).all()
    assert (target[:, -1] == 1).all()
    text = tokenizer(made.text(), add_special_tokens=False)["input_ids"]
    assert pairs[pairs != 1].tolist() == text[: 8 * 256 - 2 * len(pairs)]  # all of the text, in its order
    with torch.no_grad():
        expected = model(input_ids=source[:4], labels=target[:4].contiguous()).logits
        assert torch.equal(asked(model, windows[:1]).logits, expected)
    seen = collect(model, windows, lambda done, total: None)
    assert {its.rows for its in seen.values()} == {windows.numel() // 2}
    assert any("encoder" in name for name in seen)
    assert any(name.startswith(("decoder", "model.decoder")) for name in seen)


def test_what_an_encoder_hands_on_is_not_scaled(checkpoints):
    """Its states are an artifact's output: a norm before them can be folded into the decoder's layers, and must not."""
    model, _, windows = opened(checkpoints("T5"))
    with torch.no_grad():
        before = asked(model, windows[:1]).encoder_last_hidden_state
        found = find_folds(model, windows)
        for one in found.folds:
            fold(model, one, torch.full((one.channels,), 2.0))
        after = asked(model, windows[:1]).encoder_last_hidden_state
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    assert {"decoder.block.1.layer.2.layer_norm", "encoder.block.1.layer.1.layer_norm"} <= {
        one.source for one in found.folds
    }
    assert "encoder.final_layer_norm" not in {one.source for one in found.folds}


def test_static_int8_of_both_halves_and_a_wrong_scale_in_either(checkpoints, tmp_path, run_cli):
    report, rows = rows_of(checkpoints("Bart"), tmp_path, "onnx:int8-static", "torch:int8-static")
    assert report["passed"], [row["gates"] for row in rows.values()]
    row = rows["onnx:int8-static"]
    assert "100% of the linear layers' multiplications run in integer kernels" in row["reason"]
    assert row["artifact"]["named_share"] > 0.98
    assert value(row, "kl") < 0.02
    assert "100.0% of the linear layers' multiplications in int8" in rows["torch:int8-static"]["reason"]
    assert (tmp_path / "out" / "onnx-int8-static" / "policy.yaml").is_file()

    def broken(half, module):
        file = tmp_path / "out" / "onnx-int8-static" / half
        graph, whole = onnx.load(file), file.read_bytes()
        readers = {one: node for node in graph.graph.node for one in node.input}
        [scales] = [one for one in graph.graph.initializer if one.name.endswith(f"{module}.weight_scales")] or [None]
        assert scales is not None, sorted(one.name for one in graph.graph.initializer)
        assert scales.name in readers
        scales.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scales) * np.float32(3), scales.name))
        onnx.save(graph, file)
        done = run_cli("bench", tmp_path / "out", "--format", "json")
        file.write_bytes(whole)
        assert done.returncode == 3, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])["results"]
        [row] = [row for row in found if row["target"] == "onnx"]
        return {gate["name"] for gate in row["gates"] if not gate["passed"]}

    assert {"min_cosine", "max_kl"} <= broken(ENCODER, "layers.0.fc1")
    failed = broken(DECODER, "layers.1.encoder_attn.out_proj")
    assert "max_kl" in failed
    assert "min_cosine" not in failed


def test_a_policy_says_what_each_half_gets(checkpoints, tmp_path, run_cli):
    model = checkpoints("T5")
    (tmp_path / "calib").write_text(made.text())
    made_of = ("-m", model, "-t", "onnx:int8-static", "--calib-text", tmp_path / "calib", "--calib-tokens", 1024)
    done = run_cli("calibrate", *made_of, "--policy-out", tmp_path / "made.yaml")
    assert done.returncode == 0, done.stderr
    assert "decoder.block.1.layer.1.EncDecAttention.k: {weight: int8" in (tmp_path / "made.yaml").read_text()

    given = tmp_path / "given.yaml"
    given.write_text('version: 1\nmodules:\n  "encoder.*": {weight: int8, group: 32}\n')
    _, rows = rows_of(model, tmp_path, "onnx:int8-weight", policy=given)
    row = rows["onnx:int8-weight"]
    assert row["status"] == "ok", row["reason"]
    assert row["build"]["quantization"]["given"]
    folder = tmp_path / "out" / "onnx-int8-weight"
    encoder, decoder = (
        Counter(node.op_type for node in onnx.load(folder / half).graph.node) for half in (ENCODER, DECODER)
    )
    assert encoder["MatMulNBits"] == 8  # of two layers; queries, keys and values are one
    assert decoder["MatMulNBits"] == 0
    assert "GatherBlockQuantized" not in encoder | decoder  # the head's, which is in float
    assert [gate["name"] for gate in row["gates"] if not gate["passed"]] == ["min_named_share"]
