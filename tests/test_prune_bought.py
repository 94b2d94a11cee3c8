"""What zeros bought: each figure of a row beside one that is found another way, in real artifacts of the tiny model."""

from __future__ import annotations

import json
import shlex
import zlib
from pathlib import Path

import coremltools
import gguf_checkpoints
import numpy as np
import onnx
import pytest
import torch
from conftest import ROOT, SMALL, last_json
from onnx import TensorProto, helper, numpy_helper

from exporter.checkpoint.linear import linear_layers
from exporter.checkpoint.model import load_model
from exporter.measure.zeros import zero_share
from exporter.report.zeros import zeros_lines
from exporter.targets.coreml.sparse import fewer_bytes
from exporter.targets.onnx_graph.zeros import two_of_four, zero_counts
from exporter.targets.tensorrt.log import _SPARSE, Log
from exporter.types import Weight, Zeros

LOOSE = ("--max-ppl-ratio", 1000, "--max-kl", 100, "--format", "json")
SHARE = 0.6
TARGETS = ("onnx:fp32", "onnx:int8-weight", "onnx:int8-dynamic", "torch:bf16", "torch:int8-dynamic")
TARGETS += ("coreml:fp32", "coreml:fp16", "coreml:int8", "coreml:int4")


def asked(targets):
    return [word for one in targets for word in ("-t", one)]


@pytest.fixture(scope="module")
def sparse(run_cli, tmp_path_factory):
    """The checkpoint that `exporter compress` wrote; and its rows by variant with the folder of the run."""
    folder = tmp_path_factory.mktemp("bought")
    given = ("--prune", f"magnitude-layer:{SHARE}", "-o", folder / "sparse")
    assert run_cli("compress", "-m", "tiny", *given).returncode == 0
    # Exported as they are rounded by the targets' own rules: a policy's GPTQ would fill zeros again.
    run = ("-m", folder / "sparse", *asked(TARGETS), "--policy", "off", "--rounding", "nearest", *SMALL)
    done = run_cli("run", *run, "--format", "json", "-o", folder / "out")
    report = json.loads(done.stdout.splitlines()[-1])
    return folder / "sparse", rows(report), folder / "out"


def rows(report):
    return {f"{row['target']}:{row['precision']}": row for row in report["results"]}


def layers_of(checkpoint: Path):
    """The float weights of a checkpoint's layers but the head."""
    model = load_model(checkpoint, "text-generation", "float32")
    return {name: layer.weight.detach() for name, layer in linear_layers(model).items() if name != "lm_head"}


def share_of(weights):
    return sum(int((one == 0).sum()) for one in weights) / sum(one.numel() for one in weights)


@pytest.mark.parametrize("variant", TARGETS)
def test_the_zeros_are_found_in_the_artifact(variant, sparse):
    checkpoint, by_variant, out = sparse
    row = by_variant[variant]
    found = row["artifact"]["zeros"]
    least = share_of(layers_of(checkpoint).values())
    assert least == pytest.approx(SHARE, abs=1e-3)
    assert found["share"] >= least - 1e-9, "a zero was filled again"
    if variant.endswith(("fp32", "fp16", "bf16")):
        assert found["share"] == pytest.approx(least, abs=1e-4)  # float16 makes a 0 of what is too small
    assert (found["reason"], found["where"]) == (None, "the artifact")
    manifest = json.loads((out / row["path"] / "manifest.json").read_text())
    files = [(out / row["path"] / name).read_bytes() for name in manifest["weights"]]
    assert row["artifact"]["bytes"] == sum(map(len, files))
    assert found["compressed_bytes"] == pytest.approx(sum(len(zlib.compress(one, 6)) for one in files), rel=1e-3)
    assert found["compressor"] == "zlib, level 6"


def test_int8_codes_are_counted_as_their_own_zero_point_has_them(sparse):
    _, by_variant, out = sparse
    for variant in ("onnx:int8-weight", "onnx:int8-dynamic"):
        row = by_variant[variant]
        graph = onnx.load(out / row["path"] / "onnx" / "model.onnx").graph
        codes = [numpy_helper.to_array(one) for one in graph.initializer if one.name.endswith("_Q8")]
        layers = [one for one in codes if one.size < 300_000]  # the head is larger
        # MatMulNBits' codes mean their middle by 0; those of MatMulInteger are signed.
        zeros = sum(int((one == (128 if one.dtype == np.uint8 else 0)).sum()) for one in layers)
        assert row["artifact"]["zeros"]["share"] == pytest.approx(zeros / sum(one.size for one in layers)), variant


def test_core_ml_has_sparse_weights_that_coremltools_reads_too(sparse, run_cli, tmp_path):
    checkpoint, by_variant, out = sparse
    dense = rows(last_json(run_cli("run", "-m", "tiny", *asked(["coreml:fp16", "coreml:int8"]), *SMALL, "--format",
                                   "json", "-o", tmp_path / "dense")))  # fmt: skip
    assert all(row["artifact"]["zeros"] is None for row in dense.values()), "nobody asked for zeros"
    for variant in ("coreml:fp16", "coreml:int8"):
        row = by_variant[variant]
        assert row["artifact"]["bytes"] < 0.75 * dense[variant]["artifact"]["bytes"]
        assert "Core ML's sparse weights in 21 of 21 layers" in row["artifact"]["zeros"]["engine"]
    for variant in ("coreml:fp32", "coreml:fp16", "coreml:int8"):
        assert all(gate["passed"] for gate in by_variant[variant]["gates"]), by_variant[variant]["gates"]
    package = out / "coreml-fp16" / "model.mlpackage"
    model = coremltools.models.MLModel(str(package), skip_model_load=True)
    decoded = coremltools.optimize.coreml.decompress_weights(model)
    weights = [op.outputs[0].val for op in decoded._mil_program.functions["main"].operations if op.op_type == "const"]
    matrices = {weight.astype(np.float32).tobytes() for weight in weights if getattr(weight, "ndim", 0) == 2}
    for name, weight in layers_of(checkpoint).items():
        half = weight.half().float().numpy()
        assert {half.tobytes(), np.ascontiguousarray(half.T).tobytes()} & matrices, name


def test_bits_of_sparse_weights_are_counted_with_their_mask(sparse):
    _, by_variant, _ = sparse
    for variant, bits in (("coreml:fp32", 32), ("coreml:fp16", 16), ("coreml:int8", 8), ("coreml:int4", 4)):
        artifact = by_variant[variant]["artifact"]
        expected = 1 + bits * (1 - artifact["zeros"]["share"])
        assert artifact["bits_per_weight"] == pytest.approx(expected, rel=0.01), variant
        assert variant == "coreml:fp32" or artifact["named_share"] == 1


@pytest.mark.parametrize("system", ["iOS16", "iOS17"])
def test_an_older_system_has_sparse_floats_and_no_sparse_integers(system, sparse, run_cli, tmp_path):
    checkpoint, _, _ = sparse
    given = ("--coreml-target", system, *SMALL, "--format", "json", "-o", tmp_path / "out")
    done = rows(last_json(run_cli("run", "-m", checkpoint, *asked(["coreml:fp16", "coreml:int8"]), *given)))
    half, whole = done["coreml:fp16"]["artifact"], done["coreml:int8"]["artifact"]
    assert all(gate["passed"] for row in done.values() for gate in row["gates"])
    assert half["zeros"]["share"] == pytest.approx(SHARE, abs=1e-3)
    assert half["bits_per_weight"] < 8 == whole["bits_per_weight"]
    assert "integers before iOS18" in whole["zeros"]["engine"]


def test_a_mask_is_made_only_where_it_is_fewer_bytes():
    assert fewer_bytes(zeros=9_000, numbers=100_000, bits=16)
    assert not fewer_bytes(zeros=6_000, numbers=100_000, bits=16), "a sixteenth pays for the mask alone"
    assert not fewer_bytes(zeros=100, numbers=200, bits=16), "the mask's own record is larger"


def test_a_run_that_prunes_tells_it_everywhere(run_here, tmp_path):
    given = ("--prune", "magnitude:0.5", "-t", "onnx:int8-weight", *SMALL, *LOOSE[:4], "-o", tmp_path / "out")
    done = run_here("run", "-m", "tiny", *given)
    assert "50.0% of the linear layers' weights are 0" in " ".join(done.stdout.split())
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    [reference, row] = report["results"]
    assert reference["artifact"]["zeros"] is None
    told = list(zeros_lines(row))
    assert told[0] == "50.0% of the linear layers' weights are 0, counted in the artifact"
    assert "(zlib, level 6)" in told[1]
    assert told[2].startswith("ONNX Runtime stores and multiplies a zero as any other number")
    for form in ("report.html", "report.md"):
        text = (tmp_path / "out" / form).read_text()
        assert told[2] in text, form
        assert "the same job without --prune" in text, form
    again = last_json(run_here("run", "-m", "tiny", *given, "--format", "json"))
    assert again["results"][1]["artifact"]["zeros"] == row["artifact"]["zeros"], "it is known of a reused artifact too"


def test_fewer_shapes_are_told_in_parameters_and_have_no_zeros(run_here, tmp_path):
    given = (
        "--prune",
        "depth:1",
        "--calib-tokens",
        2048,
        "-t",
        "onnx:int8-weight",
        *SMALL,
        *LOOSE,
        "-o",
        tmp_path / "out",
    )
    report = last_json(run_here("run", "-m", "tiny", *given))
    record, row = report["model"]["prune"], report["results"][1]
    assert row["artifact"]["zeros"] is None
    before, after = record["parameters_before"], record["parameters_after"]
    page = (tmp_path / "out" / "report.md").read_text()
    assert f"{before:,} parameters before, {after:,} after" in page
    assert "that model's artifacts in other formats are not here" in page
    assert row["artifact"]["size_ratio"] == row["artifact"]["bytes"] / (4 * before)


def test_tensorrt_is_told_of_two_of_four_alone(run_here, tmp_path):
    targets = asked(["tensorrt:fp16", "tensorrt:int8", "tensorrt:fp32"])
    given = ("--no-tensorrt-engine", "--calib-tokens", 2048, *SMALL, *LOOSE)
    pruned = ("--prune", "magnitude-layer:2:4", "-o", tmp_path / "sparse")
    run_here("run", "-m", "tiny", *targets, *given, *pruned)  # fp32's gate of logits is for a model that lost nothing
    done = rows(json.loads((tmp_path / "sparse" / "report.json").read_text()))
    for precision, allowed in (("fp16", True), ("int8", True), ("fp32", False)):
        row = done[f"tensorrt:{precision}"]
        engine, zeros = row["build"]["engine"], row["artifact"]["zeros"]
        assert (engine["two_of_four_layers"], engine["sparse_tactics"]) == (21, allowed), precision
        assert engine["sparse_layers"] is None, "no engine was built"
        assert zeros["where"] == "the graph"
        assert zeros["share"] >= 0.5
        words = shlex.split((tmp_path / "sparse" / row["path"] / "rebuild.sh").read_text(), comments=True)
        assert ("--sparsity=enable" in words) == allowed
        said = "rebuild.sh allows sparse tactics" if allowed else "float32 without TF32 has no sparse tactics"
        assert zeros["engine"].startswith(f"2:4 holds in 21 of 21 layers{':' if allowed else ','}")
        assert said in zeros["engine"]
    unstructured = ("--prune", "magnitude-layer:0.5", "-o", tmp_path / "half")
    row = rows(last_json(run_here("run", "-m", "tiny", *targets[:2], *given, *unstructured)))["tensorrt:fp16"]
    assert row["build"]["engine"]["sparse_tactics"] is False
    assert "which no layer has" in row["artifact"]["zeros"]["engine"]
    assert "--sparsity" not in (tmp_path / "half" / row["path"] / "rebuild.sh").read_text()


def test_an_engine_is_built_with_sparse_tactics_allowed(tensorrt_rtx, run_here, tmp_path):
    given = ("-t", "tensorrt-rtx:fp16", "--calib-tokens", 2048, *SMALL, *LOOSE, "-o", tmp_path / "out")
    report = last_json(run_here("run", "-m", "tiny", "--prune", "magnitude-layer:2:4", *given))
    row = report["results"][1]
    assert row["build"]["engine"]["sparse_tactics"] is True
    assert "SPARSE_WEIGHTS" in row["artifact"]["zeros"]["engine"]
    assert "2:4 in 21 layers' weights: sparse tactics allowed" in (tmp_path / "out" / "report.md").read_text()


def test_what_a_builder_says_of_sparse_tactics_is_read():
    log = Log.__new__(Log)
    log._lines = ["[INFO] (Sparsity) Layers eligible for sparse math: MatMul_1, MatMul_2"]
    assert log.sparse_layers() is None
    prefix = "[INFO] (Sparsity) TRT inference plan picked sparse implementation for layers:"
    assert _SPARSE.search(prefix)
    log._lines.append(prefix)
    assert log.sparse_layers() == 0
    log._lines.append(f"{prefix} MatMul_1, Conv_4 + Relu_5")
    assert log.sparse_layers() == 2


def test_llama_cpps_blocks_keep_zeros(run_here, converter_cache, tmp_path):
    model = gguf_checkpoints.make("LlamaForCausalLM", tmp_path / "llama", hidden_size=256)
    given = ("--prune", "magnitude-layer:0.5", "-o", tmp_path / "sparse")
    assert run_here("compress", "-m", model, *given).returncode == 0
    text = ("--eval-text", ROOT / "models" / "tiny" / "eval.txt", "--window", 128)
    run = ("-m", tmp_path / "sparse", *asked(["gguf:f16", "gguf:q8_0", "gguf:q4_0"]), *text, "--gguf-imatrix", "off")
    done = run_here("run", *run, *SMALL, *LOOSE, "-o", tmp_path / "out")
    for variant, row in rows(last_json(done)).items():
        if variant != "torch:fp32":
            assert row["artifact"]["zeros"]["share"] >= 0.5 - 1e-3, variant
            assert row["artifact"]["zeros"]["engine"].startswith("llama.cpp stores and multiplies a zero")


def test_who_does_not_count_says_so():
    told = zero_share([Weight("up", 100, 16, False)], None)
    assert (told["share"], told["reason"], told["engine"]) == (None, "its target does not count zeros", None)
    missing = [Weight("up", 100, 16, False), Weight("experts", 100, 4, False), Weight("embedding", 900, 16, True)]
    told = zero_share(missing, Zeros({"up": 50}, "it skips none"))
    assert (told["share"], told["reason"]) == (None, "numbers that are not decoded here: experts")
    assert zero_share(missing, Zeros({"up": 50, "experts": 0}, "it skips none"))["share"] == 0.25
    row = {"artifact": {"bytes": 200, "zeros": told | {"compressed_bytes": 100, "compressor": "zlib, level 6"}}}
    assert next(zeros_lines(row)).endswith("is not known: numbers that are not decoded here: experts")


GRAPHS = {
    "x @ W": ("MatMul", {}, False),
    "x @ W.T": ("Gemm", {"transB": 1}, True),
}


@pytest.mark.parametrize("kind", GRAPHS)
def test_two_of_four_is_looked_for_along_what_is_summed_over(kind, tmp_path):
    operator, attributes, turned = GRAPHS[kind]
    weight = torch.randn(8, 12, generator=torch.Generator().manual_seed(0)).numpy()  # [N, K]
    weight.reshape(8, 3, 4)[..., 1:3] = 0
    for held, stored in ((1, weight), (0, weight.T.reshape(8, 12))):  # the second: zeros across the inputs
        tensor = np.ascontiguousarray(stored if turned else stored.T)
        write(tmp_path, operator, {"W": tensor}, ["x", "W"], attributes, inputs=12)
        assert two_of_four(tmp_path / "model.onnx") == (held, 1)
        assert zero_counts(tmp_path / "model.onnx") == {"W": 48}


@pytest.mark.parametrize("points", [None, "packed"])
def test_codes_of_four_bits_are_unpacked(points, tmp_path):
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 16, (8, 2, 32)).astype(np.uint8)  # [N, blocks, block]: 64 inputs
    zeros = np.full((8, 2), 8, np.uint8) if points is None else generator.integers(0, 16, (8, 2)).astype(np.uint8)
    packed = codes[..., ::2] | (codes[..., 1::2] << 4)
    tensors = {"W": packed, "scales": np.ones((8, 2), np.float32)}
    if points:
        tensors["points"] = zeros[:, ::2] | (zeros[:, 1::2] << 4)
    attributes = {"N": 8, "K": 64, "bits": 4, "block_size": 32}
    write(tmp_path, "MatMulNBits", tensors, ["x", *tensors], attributes, inputs=64, domain="com.microsoft")
    assert zero_counts(tmp_path / "model.onnx") == {"W": int((codes == zeros[..., None]).sum())}


def write(folder, operator, tensors, operands, attributes, inputs, domain=""):
    """A graph of one layer and a head behind it, which is not counted."""
    head = np.zeros((8, 5), np.float32)
    nodes = [
        helper.make_node(operator, operands, ["h"], domain=domain, **attributes),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "head"], ["logits"]),
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["T", size])
        for name, size in (("x", inputs), ("logits", 5))
    ]
    held = [numpy_helper.from_array(tensor, name) for name, tensor in {**tensors, "head": head}.items()]
    onnx.save(helper.make_model(helper.make_graph(nodes, "layer", ports[:1], ports[1:], held)), folder / "model.onnx")
