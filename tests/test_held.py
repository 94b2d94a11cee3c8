"""A precision's name is a gate: what an artifact's weights really are, read from the artifact."""

from __future__ import annotations

import json

import gguf_checkpoints
import pytest
import torch
from conftest import SMALL
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from exporter.measure.gates import judge
from exporter.measure.held import held
from exporter.pipeline.choosing import keeps_name, unnamed
from exporter.report.result import Result
from exporter.targets.gguf.options import GgufOptions
from exporter.targets.gguf.target import GGUF
from exporter.targets.onnx.target import ONNX
from exporter.types import Gates, Precision, Weight

pytestmark = pytest.mark.quick

NARROW = Precision("4-bit weights", Gates(min_named_share=0.5), bits=4, table_bits=8)


def test_a_narrow_table_does_not_make_up_for_wide_layers():
    layers = [Weight("down", 300, 4, False), Weight("up", 100, 32, False, "rows of 72 are no multiple of 32")]
    table = Weight("embedding", 10_000, 8, True)
    record = held(NARROW, [*layers, table])
    assert (record["named_share"], record["bits_per_weight"]) == (0.75, 11)
    assert record["wider"] == "wider than its name: up (100 numbers of 32 bits: rows of 72 are no multiple of 32)"
    wide_table = held(NARROW, [*layers, Weight("embedding", 600, 32, True)])
    assert wide_table["named_share"] == pytest.approx(0.3)
    assert "embedding (600 numbers of 32 bits), up" in wide_table["wider"]


def test_who_says_nothing_claims_nothing():
    silent = Precision("a third party's", Gates(max_kl=1.0))
    assert held(silent, []) == {"named_share": None, "bits_per_weight": None, "wider": None}
    assert held(silent, [Weight("up", 100, 32, False)])["named_share"] is None


def test_the_gate_says_what_is_wider():
    record = held(NARROW, [Weight("up", 100, 32, False, "experts")])
    row = Result("onnx", "int4-weight", artifact=record)
    [gate] = judge(NARROW.gates, row, frozenset(), 1000)
    assert (gate.name, gate.value, gate.passed) == ("min_named_share", 0.0, False)
    assert gate.detail == "wider than its name: up (100 numbers of 32 bits: experts)"


def test_the_nearest_mix_that_was_named_so_is_told():
    attempts = [
        {"budget": 0.08, "named_share": 0.9, "failing": ["max_ppl_ratio 1.02 (limit 1.01)"]},
        {"budget": 0.01, "named_share": 0.1, "failing": []},
    ]
    record = {"given": False, "unit": "KL, nats"}
    assert [keeps_name(NARROW.gates, one) for one in attempts] == [True, False]
    assert unnamed(NARROW, NARROW.gates, record, attempts) == (
        "no mix with 4-bit weights keeps the gates: the nearest had them in 90% of the numbers, and "
        "max_ppl_ratio 1.02 (limit 1.01)"
    )
    assert "lose at most 0.01 (KL, nats) in simulation" in unnamed(NARROW, NARROW.gates, record, attempts[1:])
    assert "the policy that was given has 4-bit weights in 10%" in unnamed(
        NARROW, NARROW.gates, record | {"given": True}, attempts[1:]
    )


def test_the_shipped_models_artifacts_are_what_they_are_called(demo):
    report = json.loads((demo / "report.json").read_text())
    rows = {(row["target"], row["precision"]): row["artifact"] for row in report["results"]}
    bits = {"fp32": 32, "fp16": 16, "bf16": 16}
    for (target, precision), artifact in rows.items():
        if (target, precision) == ("torch", "fp32"):
            assert artifact["bits_per_weight"] is None
        elif precision == "int4-weight":
            assert 4 <= artifact["bits_per_weight"] < 6
            assert artifact["named_share"] > 0.5
        else:
            assert artifact["bits_per_weight"] == bits.get(precision, 8), (target, precision)
            assert artifact["named_share"] == (None if precision == "fp32" else 1)


def test_a_gate_that_no_4_bit_mix_keeps_is_not_passed_in_float(run_here, out):
    gate = ("--max-ppl-ratio", 1.0000001, "--calib-tokens", 2048)
    done = run_here("run", "-m", "models/tiny", "-t", "onnx:int4-weight", *gate, *SMALL, "-o", out)
    assert done.returncode == 3, done.stderr
    row = json.loads((out / "report.json").read_text())["results"][1]
    failed = {gate["name"]: gate for gate in row["gates"] if not gate["passed"]}
    assert failed["min_named_share"]["value"] < 0.5
    assert "no mix with 4-bit weights keeps the gates" in failed["min_named_share"]["detail"]
    assert "no mix with 4-bit weights keeps the gates" in " ".join(done.stdout.split())  # over several lines


@pytest.fixture(scope="module")
def odd_width(tiny, tmp_path_factory):
    """A Llama whose rows are 72 wide: no multiple of the blocks of 32."""
    folder = tmp_path_factory.mktemp("odd")
    torch.manual_seed(0)
    sizes = {"hidden_size": 72, "intermediate_size": 72, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = LlamaConfig(vocab_size=2048, num_hidden_layers=2, head_dim=16, max_position_embeddings=512, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


def the_name_fails(run_here, model, out):
    """The one gate that a model fails at onnx:int8-weight, which is that of the precision's name."""
    done = run_here("run", "-m", model, "-t", "onnx:int8-weight", *SMALL, "-o", out)
    assert done.returncode == 3, done.stderr
    row = json.loads((out / "report.json").read_text())["results"][1]
    [gate] = [gate for gate in row["gates"] if not gate["passed"]]
    assert gate["name"] == "min_named_share"
    return gate


def test_rows_that_no_block_divides_are_told(run_here, odd_width, out):
    gate = the_name_fails(run_here, odd_width, out)
    assert gate["value"] < 0.25  # only the attention's last product has rows of 64
    assert "rows of 72 are no multiple of the block of 32" in gate["detail"]


@pytest.fixture(scope="module")
def mixture(tiny, tmp_path_factory):
    """A Mixtral whose experts are most of its weights."""
    folder = tmp_path_factory.mktemp("mixture")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = MixtralConfig(
        vocab_size=2048, num_hidden_layers=2, num_local_experts=4, max_position_embeddings=512, **sizes
    )
    MixtralForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


def test_experts_are_what_the_name_says(run_here, mixture, out):
    done = run_here("run", "-m", mixture, "-t", "onnx:int8-weight", *SMALL, "-o", out)
    assert done.returncode == 0, done.stderr
    [row] = [row for row in json.loads((out / "report.json").read_text())["results"] if row["target"] == "onnx"]
    [gate] = [gate for gate in row["gates"] if gate["name"] == "min_named_share"]
    assert gate["passed"]
    assert gate["value"] > 0.95


@pytest.mark.parametrize(("precision", "bits"), [("q8_0", 8.5), ("q4_0", 4.5)])
def test_a_gguf_files_own_types(precision, bits, converter_cache, tmp_path):
    checkpoint = gguf_checkpoints.make(
        "LlamaForCausalLM", tmp_path / "model", hidden_size=256, intermediate_size=512, head_dim=64
    )
    options = GgufOptions(imatrix="off")
    wanted = gguf_checkpoints.request(checkpoint, precision, tmp_path, converter_cache, options=options)
    exported = GGUF.export(wanted)
    record = held(GGUF.precisions[precision], GGUF.weights(wanted.folder, exported.weights))
    assert bits <= record["bits_per_weight"] <= GGUF.precisions[precision].gates.max_bits_per_weight


def test_every_precision_of_ours_below_float32_has_a_claim():
    for target in (ONNX, GGUF):
        for name, precision in target.precisions.items():
            limits = (precision.gates.min_named_share, precision.gates.max_bits_per_weight)
            assert any(limit is not None for limit in limits) == (name not in ("fp32", "f32")), name
