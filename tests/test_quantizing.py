"""Exports under a policy, as a user runs them: chosen, given, edited, trained for, and refused."""

import json
import re
import shutil
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from conftest import SMALL

from exporter import Job, cache, run, store
from exporter.checkpoint.model import load_model
from exporter.measure.quality import Reference
from exporter.quantization.policy import Policy, read_policy
from exporter.quantization.prepared import Prepared
from exporter.quantization.preparing import How, prepare
from exporter.quantization.quantizing import Quantizer
from exporter.quantization.simulation import simulated
from exporter.report.table import value
from exporter.scheme import Scheme
from exporter.targets.torch.target import open_checkpoint
from exporter.tasks.known import compare
from exporter.types import GENERATION, Checkpoint

FEW = {"speed": False, "eval_tokens": 512, "calib_tokens": 2048, "threads": 1}
DOWN = "model.layers.1.mlp.down_proj"


def row_of(report, precision):
    return next(row for row in report["results"] if row["precision"] == precision)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """The shipped model at the two precisions that choose a policy by themselves."""
    output = tmp_path_factory.mktemp("chosen") / "out"
    report = run(Job(model="tiny", target=("onnx:int8-static", "onnx:int4-weight"), output=output, **FEW))
    return output, report


def test_the_report_says_what_each_layer_got_and_what_was_predicted(chosen):
    _, report = chosen
    assert report["passed"]
    for precision, scheme in (
        ("int8-static", "int8 per channel static input"),
        ("int4-weight", "int4 in groups of 32"),
    ):
        record = row_of(report, precision)["build"]["quantization"]
        assert record["schemes"][next(name for name in record["schemes"] if name.startswith(scheme))] >= 21
        assert 1e-5 < record["loss"] < record["budget"]
        [attempt] = record["attempts"]
        assert attempt["passed"]
        # Other text than what the loss was simulated on: the same size, not the same number.
        assert record["loss"] / 3 < attempt["kl"] < record["loss"] * 3
        assert record["ranked"] is None  # all fit as they are: nothing was left to choose
        assert record["cost_unit"] == "bytes"
        share = record["cost"] / row_of(report, precision)["artifact"]["bytes"]
        assert 0.95 < share < 1, "the head is the embedding too: beside them there are norms and the graph"
        assert record["sensitivity"] == []


def test_what_must_be_chosen_names_the_worst(tmp_path):
    job = Job(model="tiny", target=("onnx:int4-weight",), max_kl=8e-4, output=tmp_path / "out", **FEW)
    record = row_of(run(job), "int4-weight")["build"]["quantization"]
    losses = [loss for _, loss in record["sensitivity"]]
    assert len(losses) == 12
    assert all(0 < loss < record["loss"] * 2 for loss in losses)
    assert len(record["schemes"]) == 2


def test_a_signed_input_gets_a_symmetric_range_and_another_its_own(tiny, tmp_path):
    signed = Scheme(weight="int8", input="static", signed=True)
    other = signed.model_copy(update={"signed": False})
    policy = Policy(modules={"*.q_proj": signed, "*.up_proj": other, "lm_head": Scheme(weight="int8")})
    how = How((), False, "min-max", False, "nearest", policy)
    text = {"name": "calib", "text": (tiny / "calib.txt").read_text(encoding="utf-8")}
    checkpoint = Checkpoint(tiny, GENERATION, "tiny", "0" * 64, 0)
    prepare(
        checkpoint, how, 1, lambda name: lambda done, total: None, tmp_path, **text, skip=0, tokens=1024, max_length=128
    )
    for name, scheme in Prepared.load(tmp_path, how).lowest().items():
        if name.endswith((".q_proj", ".up_proj")):
            low, high = scheme.range
            assert (low == -high) == name.endswith(".q_proj")
            assert scheme.signed == name.endswith(".q_proj")
        elif name == "lm_head":
            assert scheme.range is None
        else:
            assert scheme is None


def test_a_later_attempt_takes_what_the_first_found(tiny, tmp_path):
    """It neither calibrates nor ranks again, and chooses and writes what a process that never ended would."""
    schemes = (Scheme(weight="int4", group=32, symmetric=False), Scheme(weight="int8", group=32))
    how = How(schemes, True, "min-max", False, "gptq")
    text = {"name": "calib", "text": (tiny / "calib.txt").read_text(encoding="utf-8")}
    checkpoint = Checkpoint(tiny, GENERATION, "tiny", "0" * 64, 0)
    steps, prepared = [], tmp_path / "prepared"

    def step(name):
        steps.append(name)
        return lambda done, total: None

    def written(quantizer, budget, name):
        (tmp_path / name).mkdir()
        record = quantizer.write(quantizer.choose(budget), budget, tmp_path / name)
        return record, (tmp_path / name / "model.safetensors").read_bytes()

    prepared.mkdir()
    prepare(checkpoint, how, 1, step, prepared, **text, skip=0, tokens=1024, max_length=128)
    more = (tmp_path / "originals", partial(cache.RANKINGS.kept, store.content_key(tmp_path), print))
    first = Quantizer(checkpoint, how, 1, step, prepared, *more)
    loose, _ = written(first, 1.0, "loose")
    assert [name for name in steps if name in ("GPTQ", "sensitivity")] == ["GPTQ"]
    again = written(first, loose["loss"] / 2, "again")
    fresh = written(Quantizer(checkpoint, how, 1, step, prepared, *more), loose["loss"] / 2, "fresh")
    assert [name for name in steps if name in ("GPTQ", "sensitivity")] == ["GPTQ", "sensitivity"]
    assert fresh == again
    assert fresh[0]["schemes"] != loose["schemes"]


def test_what_was_simulated_is_what_the_artifact_does(chosen, tiny):
    """The policy of the folder on the float checkpoint: simulated perplexity against the artifact's."""
    output, report = chosen
    policy = read_policy(output / "onnx-int8-static" / "policy.yaml")
    row = row_of(report, "int8-static")
    assert any("SmoothQuant" in line for line in row["build"]["quantization"]["history"])
    plain = run(Job(model="tiny", target=("onnx:int8-static",), smooth=False, output=output.parent / "plain", **FEW))
    policy = read_policy(output.parent / "plain" / "onnx-int8-static" / "policy.yaml")
    reference = Reference.load(output / "reference" / "reference.npz")
    with open_checkpoint(tiny, "text-generation", 1) as runner:
        schemes = policy.resolved(list(policy.modules))
        with torch.no_grad(), simulated(runner._model, schemes):
            figures = compare(runner, reference)[0]
    assert figures["ppl"].value == pytest.approx(value(row_of(plain, "int8-static"), "ppl"), rel=2e-3)
    assert figures["kl"].value == pytest.approx(value(row_of(plain, "int8-static"), "kl"), rel=0.25)


def test_integer_kernels_are_counted_in_the_graph_that_runs(chosen):
    _, report = chosen
    assert (
        "100% of the linear layers' multiplications run in integer kernels" in row_of(report, "int8-static")["reason"]
    )


def test_a_policy_is_edited_and_given(chosen, run_here, tmp_path):
    output, report = chosen
    text = yaml.safe_load((output / "onnx-int4-weight" / "policy.yaml").read_text())
    text["modules"][DOWN] = "float"
    (tmp_path / "my policy's.yaml").write_text(yaml.safe_dump(text))
    done = run_here(
        "run", "-m", "tiny", "-t", "onnx:int4-weight", "--policy", tmp_path / "my policy's.yaml", "--no-speed",
        "--eval-tokens", 512, "--calib-tokens", 2048, "--threads", 1, "--format", "json", "-o", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    row = row_of(json.loads(done.stdout.splitlines()[-1]), "int4-weight")
    assert row["build"]["quantization"]["given"]
    assert row["build"]["quantization"]["others"][DOWN] == "float"
    before = row_of(report, "int4-weight")
    values = 256 * 512
    grown = row["artifact"]["bytes"] - before["artifact"]["bytes"]
    assert grown == pytest.approx(values * (4 - 0.5 - 2.5 / 32), rel=0.01)
    assert value(row, "kl") < value(before, "kl")


def test_calibrate_writes_the_policy_that_run_would_use(chosen, run_here, tmp_path):
    output, _ = chosen
    done = run_here(
        "calibrate", "-m", "tiny", "-t", "onnx:int8-static", "--calib-tokens", 2048, "--eval-tokens", 512,
        "--threads", 1, "--policy-out", tmp_path / "policy.yaml",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "none was looked at alone" in done.stdout
    made, used = read_policy(tmp_path / "policy.yaml"), read_policy(output / "onnx-int8-static" / "policy.yaml")
    assert made.modules.keys() == used.modules.keys()
    for name, scheme in made.modules.items():
        assert np.allclose(scheme.range or (), used.modules[name].range or (), rtol=1e-4)
        assert scheme.weight == used.modules[name].weight


def test_a_gate_is_kept_by_stricter_mixes(tmp_path):
    """One that no quantized layer can keep ends in float, which the report shows."""
    job = Job(
        model="tiny", target=("onnx:int4-weight",), max_kl=1e-7, rounding="nearest", output=tmp_path / "out", **FEW
    )
    record = row_of(run(job), "int4-weight")["build"]["quantization"]
    losses = [attempt["loss"] for attempt in record["attempts"]]
    assert losses == sorted(losses, reverse=True)
    assert record["schemes"]["float"] >= 15
    assert record["loss"] <= 5e-8


def test_a_changed_gate_chooses_again_where_another_mix_could_come_of_it(chosen, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(chosen[0], out)

    def works(**gates):
        shutil.rmtree(out / "logs")
        report = run(Job(model="tiny", target=("onnx:int8-static",), output=out, force=True, **FEW, **gates))
        [attempt, *_] = row_of(report, "int8-static")["build"]["quantization"]["attempts"]
        return {path.name for path in out.glob("logs/onnx*")}, attempt["budget"]

    before = row_of(chosen[1], "int8-static")["build"]["quantization"]["attempts"][0]["budget"]
    assert works(min_top1=0.5) == (set(), before)
    logs, budget = works(max_kl=0.01)
    assert {"onnx-int8-static.quantize.log", "onnx-int8-static.export.log"} <= logs
    assert budget < before
    assert works(max_kl=0.01) == (set(), budget)


def test_off_takes_the_lowest_scheme_everywhere(tmp_path):
    report = run(Job(model="tiny", target=("onnx:int8-static",), policy="off", output=tmp_path / "out", **FEW))
    assert set(row_of(report, "int8-static")["build"]["quantization"]["schemes"]) == {"int8 per channel static input"}


@pytest.mark.parametrize(
    ("modules", "target", "said"),
    [
        ({"model.layers.1.mlp.downproj": "float"}, "onnx:int4-weight", "did you mean model.layers.1.mlp.down_proj"),
        ({"*": Scheme(weight="int4", input="dynamic")}, "onnx:int4-weight", "it takes int8 or int4 in groups of"),
        ({"*": Scheme(weight="int4", input="static")}, "torch:int8-static", "has int8 weights per channel"),
        ({"*": Scheme(weight="int8")}, "onnx:fp16", "takes none; see 'exporter targets'"),
        *(
            (
                {"*": Scheme(weight="palette4")},
                target,
                f"{target} cannot express palette4",
            )
            for target in (
                "onnx:int4-weight",
                "onnx:int8-weight",
                "onnx:int8-static",
                "coreml:int4",
                "coreml:palettize6",
            )
        ),
    ],
)
def test_what_cannot_be_made_is_said_before_any_work(refused, tmp_path, modules, target, said):
    (tmp_path / "policy.yaml").write_text(Policy(modules=modules).to_yaml())
    assert said in refused("-m", "tiny", "-t", target, "--policy", tmp_path / "policy.yaml")


def test_a_policy_of_another_checkpoint(refused, run_here, tiny, tmp_path):
    """Whatever the text or the way of the merge: with its own weights it is taken, with others only when told."""
    file, adapter = tmp_path / "policy.yaml", ("--adapter", tiny / "adapter")
    asked = ("-m", "tiny", "-t", "onnx:int4-weight", "--policy", file)
    made = Policy(source="my model", sha256="0123456789abcdef", modules={"*": "float"})
    file.write_text(made.to_yaml())
    line = refused(*asked)
    assert "was made for another checkpoint, my model (0123456789ab…), and this is tiny (" in line
    assert "take it all the same with --force-policy" in line
    other = ("--merge", "streaming", "--eval-text", tiny / "adapter" / "eval.txt")
    ways = ((), adapter, (*adapter, *other))
    own, merged, again = (re.search(r"this is tiny \((\w+)…\)", refused(*asked, *more))[1] for more in ways)
    assert own != merged == again
    done = run_here("run", *asked, "--force-policy", *SMALL, "--format", "json", "-o", tmp_path / "forced")
    notes = json.loads(done.stdout.splitlines()[-1])["model"]["notes"]
    assert [note for note in notes if note.endswith("used all the same (--force-policy).")] == notes


def test_too_little_calibration_text_is_said(refused, tmp_path):
    (tmp_path / "short.txt").write_text("Too short to learn anything from it. " * 4)
    line = refused("-m", "tiny", "-t", "onnx:int8-static", "--calib-text", tmp_path / "short.txt")
    assert "give a longer one with --calib-text" in line
    line = refused("-m", "tiny", "-t", "onnx:int8-static", "--calib-tokens", 600)
    assert "calib.txt is too short: of 512 tokens each it gives 1 calibration window, and a policy needs 4" in line


def test_a_trained_model_is_exported_as_it_was_trained(tmp_path, tiny):
    """The artifact's perplexity is the trained checkpoint's own, within 0.5%, and the report draws its loss."""
    output = tmp_path / "out"
    report = run(
        Job(
            model="tiny",
            target=("onnx:int4-weight", "onnx:fp32"),
            qat={"steps": 6, "window": 128, "batch": 2},
            output=output,
            **FEW,
        )
    )
    row = row_of(report, "int4-weight")
    assert row["build"]["quantization"]["given"]
    assert len(report["model"]["qat"]["curve"]) == 6
    assert "Quantization-aware training" in (output / "report.html").read_text()
    assert any("trained 6 steps" in line for line in report["model"]["history"])
    # Trained weights lie on their grid: the float graph of the same checkpoint computes what the 4-bit one does, but
    # for the head's 8 bits and the kernels' rounding of inputs.
    assert value(row, "ppl") == pytest.approx(value(row_of(report, "fp32"), "ppl"), rel=5e-3)
    plain = load_model(tiny, "text-generation", "float32").state_dict()[f"{DOWN}.weight"]
    assert value(row, "kl") > 1e-5
    assert plain.shape == (256, 512)
