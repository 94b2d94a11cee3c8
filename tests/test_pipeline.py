"""The main job as a whole: one run of the shipped model with its adapter (the `demo` fixture), and what follows it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import STEP
from report_schema import complaints

from exporter import Job, run
from exporter.measure.quality import Reference
from exporter.report.table import value

ON_A_GPU = "onnx:bf16"  # proven on the CPU, and timed on a GPU alone


@pytest.fixture(scope="module")
def report(demo):
    return json.loads((demo / "report.json").read_text())


def row_of(report, variant):
    return next(row for row in report["results"] if f"{row['target']}:{row['precision']}" == variant)


def test_the_report_has_every_key_of_the_contract(report):
    assert list(complaints(report)) == []
    assert report["schema_version"] == 2
    assert report["evaluation"]["tokens_scored"] == 4095
    assert report["model"]["parameters"] == 2_295_552


def test_every_precision_of_every_target_was_built_measured_and_passed(report):
    variants = [f"{row['target']}:{row['precision']}" for row in report["results"]]
    assert variants == [
        "torch:fp32", "torch:bf16", "torch:fp16", "torch:int8-dynamic", "torch:int8-static", "onnx:fp32", "onnx:fp16",
        ON_A_GPU, "onnx:int8-weight", "onnx:int8-dynamic", "onnx:int8-static", "onnx:int4-weight",
    ]  # fmt: skip
    for row in report["results"]:
        assert row["status"] == "ok"
        assert all(gate["passed"] for gate in row["gates"])
        assert len(row["gates"]) >= 2 or row["precision"] == "fp32"
        if f"{row['target']}:{row['precision']}" == ON_A_GPU and row["artifact"]["device"] == "cpu":
            assert "runs on a GPU" in row["speed"]["untimed"]
            continue
        assert row["memory"]["peak_rss_bytes"] > 30e6
        assert row["speed"]["decode_tokens_per_s"] > 0
        assert 0 < row["speed"]["latency_ms"]["decode"]["p50"] <= row["speed"]["latency_ms"]["decode"]["p99"]
    assert report["passed"] is True


def test_float32_is_the_same_model(report):
    row = row_of(report, "onnx:fp32")
    # float32 sums in another order: about 1e-5 of a logit of size 10, and far less on the mean of 4,095 tokens.
    assert value(row, "ppl_ratio") == pytest.approx(1.0, abs=1e-5)
    assert value(row, "logit_error") < 1e-4
    assert value(row, "cache_kl") < 1e-7
    assert value(row, "top1") > 0.999


@pytest.mark.parametrize(
    ("variant", "kl"),
    [("onnx:fp16", 1e-4), ("onnx:int8-weight", 1e-3), ("onnx:int8-dynamic", 5e-3), ("onnx:int4-weight", 0.03)],
)
def test_fewer_bits_cost_more_and_no_more_than_they_must(report, variant, kl):
    row = row_of(report, variant)
    assert value(row_of(report, "onnx:fp32"), "kl") < value(row, "kl") < kl


def test_the_adapter_is_in_the_model(report, run_here, tmp_path):
    """The merged model is better at what the adapter was trained on than the base is."""
    assert "merged LoRA adapter" in " ".join(report["model"]["history"])
    done = run_here(
        "run", "-m", "tiny", "--eval-text", "models/tiny/adapter/eval.txt", "--threads", 1,
        "--no-speed", "-t", "torch:bf16", "-o", tmp_path / "o",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    base = json.loads((tmp_path / "o" / "report.json").read_text())
    assert report["evaluation"]["reference_ppl"] < 0.75 * base["evaluation"]["reference_ppl"]
    assert base["results"][1]["speed"]["decode_tokens_per_s"] is None
    assert "--no-speed" in base["results"][1]["reason"]


def test_held_out_perplexity_shows_damage(report):
    assert 20 < report["evaluation"]["reference_ppl"] < 120  # of 2,048 possible tokens


def test_a_second_run_reuses_what_is_there_and_mends_what_is_damaged(demo, tmp_path, report):
    output = tmp_path / "out"
    shutil.copytree(demo, output)
    job = Job.model_validate(report["job"] | {"output": str(output), "speed": False})
    times = {p: p.stat().st_mtime_ns for p in output.glob("*/manifest.json")}
    broken = output / "onnx-fp16" / "onnx" / "model.onnx"
    broken.write_bytes(broken.read_bytes()[:-100])
    again = run(job)
    assert again["passed"]
    rebuilt = {p.parent.name for p in output.glob("*/manifest.json") if p.stat().st_mtime_ns != times[p]}
    assert rebuilt == {"onnx-fp16"}
    assert not [path for path in output.iterdir() if path.name.startswith(".")]


def test_bench_measures_again_where_torch_is_not_installed(demo, tmp_path, run_cli, report):
    output, block = tmp_path / "out", tmp_path / "without"
    shutil.copytree(demo, output)
    for package in ("torch", "transformers", "peft", "optimum"):
        (block / package).mkdir(parents=True)
        (block / package / "__init__.py").write_text(f"raise ImportError('no {package} here')\n")
    done = run_cli("bench", output, "--format", "json", env={"PYTHONPATH": str(block)})
    again = json.loads(done.stdout.splitlines()[-1])
    rows = {f"{row['target']}:{row['precision']}": row for row in again["results"]}
    for variant, row in rows.items():
        before = row_of(report, variant)
        if variant.startswith("onnx"):
            assert row["status"] == "ok"
            assert value(row, "ppl_ratio") == pytest.approx(value(before, "ppl_ratio"), abs=1e-6)
            assert (row["artifact"]["bytes"], row["reason"]) == (before["artifact"]["bytes"], before["reason"])
            assert variant == ON_A_GPU or row["speed"]["decode_tokens_per_s"] > 0
        else:
            assert row["status"] == "failed" or "torch" in row["reason"]


def test_the_stored_reference_is_small_and_holds_no_pickle(demo):
    path = demo / "reference" / "reference.npz"
    assert path.stat().st_size < 15e6
    reference = Reference.load(path)
    assert len(reference.answers.nll) == 4095
    assert reference.answers.top_ids.shape == (4095, 256)


def files_of(root: Path) -> set[Path]:
    """The checkout's own files, without what Python and other tools keep beside them."""
    return {path for folder in ("exporter", "models") for path in (root / folder).rglob("*") if path.suffix != ".pyc"}


def test_nothing_is_written_but_into_the_output_and_the_cache(tmp_path, run_cli, cache):
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    env = {"HOME": str(home), "TMPDIR": str(work), "XDG_CACHE_HOME": str(home / "cache")}
    root = Path(__file__).resolve().parent.parent
    before = files_of(root)
    done = run_cli(
        "run", "-m", root / "models" / "tiny", "--eval-tokens", "256", "--no-speed", "-o", tmp_path / "out", env=env
    )
    assert done.returncode == 0, done.stderr
    assert all(STEP.fullmatch(line) for line in done.stderr.splitlines(keepends=True)), done.stderr
    assert files_of(root) == before
    assert list(work.iterdir()) == []
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_tensors_that_the_model_has_no_place_for_are_named_in_the_report(tmp_path):
    """transformers drops them with a line in its log: a third layer, where the configuration says two."""
    tiny = Path(__file__).resolve().parent.parent / "models" / "tiny"
    shutil.copytree(tiny, tmp_path / "model")
    config = json.loads((tiny / "config.json").read_text()) | {"num_hidden_layers": 2}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    small = {"eval_tokens": 256, "threads": 1, "speed": False}
    job = Job(model=str(tmp_path / "model"), target="torch:bf16", output=tmp_path / "out", **small)
    [note] = run(job)["model"]["notes"]
    assert "model.layers.2.input_layernorm.weight" in note
    assert "6 more" in note
