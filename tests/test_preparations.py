"""What a policy is chosen from, taken from the cache: the same to the last byte, and never that of something else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from threading import Thread

import numpy as np
import pytest
import torch
from conftest import ROOT, last_json
from policied import windows

from exporter import Job, cache, run, store
from exporter.checkpoint.experts import split_experts
from exporter.checkpoint.model import load_model
from exporter.errors import BuildError
from exporter.forkserver import shared
from exporter.pipeline.choosing import Choosing
from exporter.process import silent
from exporter.quantization.prepared import Prepared, copies
from exporter.quantization.preparing import How, prepare
from exporter.quantization.statistics import collect, load_statistics, save_statistics
from exporter.scheme import Scheme
from exporter.types import GENERATION, Checkpoint

INT4, INT8 = Scheme(weight="int4", group=32, symmetric=False), Scheme(weight="int8", group=32)
STATIC, DYNAMIC = (Scheme(weight="int8", input=kind) for kind in ("static", "dynamic"))
FOUR = How((INT4, INT8), True, "min-max", True, "gptq", experts=True)
EIGHT = replace(FOUR, schemes=(STATIC, INT8))
PLAIN = replace(EIGHT, smooth=False)
FEW = {"speed": False, "eval_tokens": 256, "calib_tokens": 2048, "threads": 1}
TEXT = {"name": "calib", "tokens": 512, "skip": 0, "max_length": 64}
PREPARED = "calibrated and rounded before: taken from the cache"
COLLECTED = "the float model's statistics were collected before: taken from the cache"
RANKED = "what layers lose was found before: taken from the cache"
WORK = """
import json, sys
from pathlib import Path
from exporter.pipeline.choosing import prepare_policy
from exporter.process import Session
from exporter.types import Checkpoint
args = json.loads(sys.argv[1])
checkpoint = Checkpoint(**{**args.pop("checkpoint"), "path": Path(sys.argv[2])})
def told(what, done, total):
    print(what, flush=True)
print(json.dumps(prepare_policy(Session(told), checkpoint, **args)), flush=True)
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("EXPORTER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def choosing(tiny, tmp_path):
    """`choosing(how, …)`: as a run chooses a variant's policy, of the shipped model on a few tokens."""
    text = (tiny / "calib.txt").read_text(encoding="utf-8")
    checkpoint = Checkpoint(tiny, GENERATION, "tiny", "0" * 64, 0)

    def make(how, checkpoint=checkpoint, scratch="scratch", **changed):
        (tmp_path / scratch).mkdir(exist_ok=True)
        told = {**TEXT, "text": text, **changed}
        return Choosing(checkpoint, how.dump(), told, 1, tmp_path / "log", silent, tmp_path / scratch, shared, "onnx")

    return make


def written(choice, budget, folder):
    """What a choice writes that a target reads: every byte of it, and its record."""
    folder.mkdir(parents=True)
    record = choice.choose(budget, folder)
    return record, {path.name: path.read_bytes() for path in folder.iterdir()}


def one(kind):
    [path] = kind.place().iterdir()
    return path


def test_another_gate_and_a_later_run_begin_with_it(root, choosing, tmp_path):
    first = choosing(FOUR)
    first.prepare()
    loose, _ = written(first, 1.0, tmp_path / "loose")
    assert not cache.RANKINGS.place().exists()  # all fits: what layers lose is not asked
    strict = written(first, loose["loss"] / 2, tmp_path / "strict")
    assert written(first, loose["loss"] / 4, tmp_path / "stricter")[0]["schemes"] != strict[0]["schemes"]
    assert first.reused == []
    later = choosing(FOUR, scratch="later")
    later.prepare()
    assert later.reused == [PREPARED]
    assert written(later, loose["loss"] / 2, tmp_path / "again") == strict
    assert later.reused == [PREPARED, RANKED]


def test_what_it_depends_on_makes_another_and_nothing_else_does(tiny, choosing, model):
    """No target and no gate is in the key, and no scheme that is nobody's lowest."""
    plain, static = choosing(FOUR)._key, choosing(EIGHT)._key
    text = (tiny / "calib.txt").read_text(encoding="utf-8")
    checkpoint = Checkpoint(tiny, GENERATION, "tiny", "0" * 64, 0)
    words = model()
    (words / "tokenizer.json").unlink()
    (words / "tokenizer.json").write_text((tiny / "tokenizer.json").read_text() + " ")
    others = [
        choosing(FOUR, text=text + " More.")._key,
        choosing(FOUR, tokens=1024)._key,
        choosing(FOUR, max_length=128)._key,
        choosing(FOUR, replace(checkpoint, sha256="1" * 64))._key,
        choosing(FOUR, replace(checkpoint, path=words))._key,  # the same weights, and other token ids
        choosing(replace(FOUR, rounding="awq"))._key,
        choosing(replace(FOUR, schemes=(INT4.model_copy(update={"group": 64}), INT8)))._key,
        choosing(replace(FOUR, schemes=(INT4, DYNAMIC)))._key,  # which is the head's lowest
        choosing(replace(FOUR, experts=False))._key,
        choosing(replace(EIGHT, ranges="mse"))._key,
        choosing(replace(EIGHT, smooth=False))._key,
        choosing(replace(EIGHT, ranges_per_octave=4))._key,
        choosing(replace(EIGHT, convolutions=True))._key,
        choosing(replace(EIGHT, schemes=(STATIC.model_copy(update={"signed": True}), INT8)))._key,
    ]
    assert len({plain, static, *others}) == 2 + len(others)
    assert {
        choosing(one)._key
        for one in (
            replace(EIGHT, schemes=(STATIC,)),
            replace(EIGHT, schemes=(STATIC, DYNAMIC), mixed=False),
            replace(EIGHT, sensitivity="estimated"),
            replace(EIGHT, rounds_outputs=True),
        )
    } == {static}


def test_the_shipped_model_s_real_jobs_have_it_in_common(root, run_here, tmp_path):
    """One job for torch begins with what another for ONNX found, and `exporter calibrate` serves the run after it."""
    asked = ("-m", "tiny", "--eval-tokens", 256, "--calib-tokens", 2048, "--threads", 1)
    made = last_json(
        run_here("calibrate", *asked, "-t", "onnx:int8-static", "--policy-out", tmp_path / "p.yaml", "--format", "json")
    )
    assert made["reused"] == []
    both = ("onnx:int8-static", "torch:int8-static")
    report = run(Job(model="tiny", target=both, output=tmp_path / "out", **FEW))
    records = [row["build"]["quantization"] for row in report["results"] if row["precision"] == "int8-static"]
    assert [record["reused"] for record in records] == [[PREPARED], [PREPARED]]
    assert all(0 < record["seconds"] < made["seconds"] + 60 for record in records)
    assert (tmp_path / "out" / "onnx-int8-static" / "policy.yaml").read_bytes() == (tmp_path / "p.yaml").read_bytes()
    assert PREPARED in (tmp_path / "out" / "report.md").read_text()
    one(cache.PREPARATIONS)
    other = run(Job(model="tiny", target=both[:1], ranges="entropy", output=tmp_path / "entropy", **FEW))
    [row] = [row for row in other["results"] if row["target"] == "onnx"]
    assert row["build"]["quantization"]["reused"] == [COLLECTED]
    assert len(list(cache.PREPARATIONS.place().iterdir())) == 2


def test_an_artifact_of_what_was_kept_is_the_artifact_that_was_made_anew(root, tmp_path, monkeypatch):
    """The whole way, with a mix that had to be chosen: the same policy and the same graph, byte for byte."""

    def shipped(name):
        report = run(Job(model="tiny", target=("onnx:int4-weight",), max_kl=8e-4, output=tmp_path / name, **FEW))
        [row] = [row for row in report["results"] if row["target"] == "onnx"]
        folder = tmp_path / name / row["path"]
        manifest = store.read_manifest(folder)
        record = row["build"]["quantization"]
        files = {file: manifest["files"][file]["sha256"] for file in (*manifest["weights"], "policy.yaml")}
        return files, record["reused"], record["sensitivity"]

    anew, reused, losses = shipped("anew")
    assert reused == []
    assert len(losses) > 0
    assert shipped("kept") == (anew, [PREPARED, RANKED], losses)
    monkeypatch.setenv("EXPORTER_CACHE", str(tmp_path / "another"))
    assert shipped("elsewhere") == (anew, [], losses)


def test_statistics_are_the_same_from_their_file(tiny, tmp_path):
    model = load_model(tiny, GENERATION, "float32").eval()
    found = collect(model, windows("tiny"), lambda done, total: None)
    save_statistics(found, tmp_path)
    kept = load_statistics(tmp_path)
    assert kept.keys() == found.keys()
    for name, its in found.items():
        same, histogram = kept[name], kept[name].histogram
        assert same.rows == its.rows
        for field in ("low", "high", "squares"):
            assert np.array_equal(getattr(same, field), getattr(its, field))
        for field in ("low", "high", "counts"):
            assert np.array_equal(getattr(histogram, field), getattr(its.histogram, field))


def prepared(checkpoint, how, folder, text, keep=None):
    folder.mkdir()
    told = {**TEXT, "text": text}
    return prepare(checkpoint, how, 1, lambda name: lambda done, total: None, folder, keep, **told)


def test_kept_statistics_make_the_same_of_it(root, tiny, tmp_path):
    checkpoint = Checkpoint(tiny, GENERATION, "tiny", "0" * 64, 0)
    text = (tiny / "calib.txt").read_text(encoding="utf-8")
    keep = partial(cache.CALIBRATIONS.kept, store.content_key("statistics"), print)
    for how in (EIGHT, replace(EIGHT, ranges="percentile"), replace(EIGHT, smooth=False)):
        name = f"{how.ranges}-{how.smooth}"
        there = prepared(checkpoint, how, tmp_path / f"{name}-kept", text, keep)
        assert there == (how is not EIGHT)
        assert not prepared(checkpoint, how, tmp_path / name, text)
        assert store.sha256_folder(tmp_path / name) == store.sha256_folder(tmp_path / f"{name}-kept")


def test_what_nothing_changed_is_not_kept(tiny, tmp_path):
    checkpoint = Checkpoint(tiny, GENERATION, "tiny", "0" * 64, 0)
    text = (tiny / "calib.txt").read_text(encoding="utf-8")
    facts = {"prepared.json", "windows.npy"}
    held = {
        "rounded": (FOUR, {"rounded/model.safetensors"}),
        "smoothed": (EIGHT, {"changed/model.safetensors"}),
        "both": (replace(FOUR, rounding="awq"), {"changed/model.safetensors", "rounded/model.safetensors"}),
        "neither": (replace(EIGHT, smooth=False), set()),
        "nearest": (replace(FOUR, rounding="nearest"), set()),
    }
    parameters = load_model(tiny, GENERATION, "float32")
    whole = 4 * parameters.num_parameters()
    for name, (how, files) in held.items():
        prepared(checkpoint, how, tmp_path / name, text)
        assert set(store.file_names(tmp_path / name)) == facts | files
        assert copies(how) == len(files)
        size = sum((tmp_path / name / file).stat().st_size for file in files)
        assert size <= len(files) * whole * 1.01
    ids = windows("tiny")
    expected = parameters(input_ids=ids).logits
    smoothed = load_model(tiny, GENERATION, "float32").eval()
    before = {name: tensor.clone() for name, tensor in smoothed.named_parameters()}
    Prepared.load(tmp_path / "smoothed", EIGHT).change(smoothed)
    changed = {name for name, tensor in smoothed.named_parameters() if not torch.equal(tensor, before[name])}
    assert changed
    assert "model.embed_tokens.weight" not in changed
    assert torch.allclose(smoothed(input_ids=ids).logits, expected, atol=1e-3)
    with torch.no_grad():
        assert not torch.equal(smoothed.model.layers[0].mlp.up_proj.weight, before["model.layers.0.mlp.up_proj.weight"])


def moe(folder, tiny):
    import transformers as t

    torch.manual_seed(0)
    config = t.Qwen3MoeConfig(
        vocab_size=2048, hidden_size=64, moe_intermediate_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, head_dim=16,
        max_position_embeddings=64,
    )  # fmt: skip
    folder.mkdir()
    t.Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny / name, folder / name)
    return folder


def test_experts_in_stacks_and_bfloat16(root, choosing, tiny, tmp_path):
    """The checkpoint stores them otherwise: what is put back is the float model's, from the cache too."""
    folder = moe(tmp_path / "model", tiny)
    checkpoint = Checkpoint(folder, GENERATION, "random", "2" * 64, 0)
    results = []
    for name in ("made", "kept"):
        choice = choosing(replace(FOUR, rounding="nearest"), checkpoint, name)
        choice.prepare()
        results.append(written(choice, 1e-9, tmp_path / f"{name}-written"))
        assert PREPARED in choice.reused or name == "made"
    assert results[0] == results[1]
    float_model = split_experts(load_model(folder, GENERATION, "float32"))
    other = split_experts(load_model(tmp_path / "kept-written", GENERATION, "float32"))
    raised = {name for name, scheme in results[0][0]["policy"].items() if scheme is None}
    assert raised
    expected = dict(float_model.named_parameters())
    rounded = {f"{name}.weight" for name in results[0][0]["policy"]} - {f"{name}.weight" for name in raised}
    for name, tensor in other.named_parameters():
        assert torch.equal(tensor, expected[name]) or name in rounded, name


@pytest.mark.parametrize("harm", ["cut", "changed", "gone", "another's"])
def test_what_is_damaged_is_made_again(root, harm):
    key, made = "3" * 64, []

    def make(folder):
        made.append((folder / "inner").mkdir())
        (folder / "inner" / "weights").write_bytes(b"0123456789")

    kept = partial(cache.PREPARATIONS.kept, key, print, make)
    folder, there = kept()
    assert (folder, there, len(made)) == (cache.PREPARATIONS.entry(key), False, 1)
    assert (kept(), len(made)) == ((folder, True), 1)
    file = folder / "inner" / "weights"
    if harm == "another's":
        manifest = (folder / store.MANIFEST).read_text()
        (folder / store.MANIFEST).write_text(manifest.replace(key, "4" * 64))
    elif harm == "gone":
        file.unlink()
    else:
        file.write_bytes(b"012345678" if harm == "cut" else b"012345678X")
    assert (kept(), len(made)) == ((folder, False), 2)
    assert (kept(), len(made)) == ((folder, True), 2)
    assert file.read_bytes() == b"0123456789"


@pytest.fixture
def at_work(choosing, tiny):
    """`at_work()`: another process that prepares the same."""
    running = []

    def begin():
        choice = choosing(PLAIN)
        told = {"how": PLAIN.dump(), "threads": 1, "text": choice.text, "key": choice._key, "statistics": "5" * 64}
        about = {"task": GENERATION, "source": "tiny", "sha256": "0" * 64, "parameters": 0}
        command = [sys.executable, "-c", WORK, json.dumps(told | {"checkpoint": about}), str(tiny)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT))
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def test_of_two_at_once_one_makes_it_and_the_other_waits(root, at_work):
    first, second = at_work(), at_work()
    results = {}

    def read(name, process):
        results[name] = process.communicate(timeout=120)[0].splitlines()

    threads = [Thread(target=read, args=(name, process)) for name, process in (("a", first), ("b", second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = [json.loads(lines[-1])["prepared"] for lines in results.values()]
    assert sorted(told) == [False, True]
    assert any(line.endswith("which makes the same") for lines in results.values() for line in lines)
    one(cache.PREPARATIONS)


def test_kill_9_leaves_nothing_half_made(root, at_work, choosing):
    process = at_work()
    place = cache.PREPARATIONS.place()
    end = time.monotonic() + 120
    while not list(place.glob(".*.tmp")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert [path for path in place.iterdir() if not path.name.startswith(".")] == []
    later = choosing(PLAIN)
    later.prepare()
    assert later.reused == []
    folder = one(cache.PREPARATIONS)
    assert store.reusable(folder, folder.name) is not None


def test_clean_counts_and_removes_it(root, choosing, tmp_path, run_here):
    choice = choosing(PLAIN)
    choice.prepare()
    written(choice, 1e-9, tmp_path / "written")
    rows = {row["kind"]: row for row in last_json(run_here("clean", "--format", "json"))["kinds"]}
    assert [rows[name]["entries"] for name in ("preparations", "rankings", "calibrations")] == [1, 1, 1]
    long_ago = time.time() - 40 * 86400
    for kind in (cache.PREPARATIONS, cache.RANKINGS, cache.CALIBRATIONS):
        os.utime(one(kind), (long_ago, long_ago))
    later = choosing(PLAIN, scratch="later")
    later.prepare()
    assert run_here("clean", "--older-than", "30d").returncode == 0
    assert one(cache.PREPARATIONS).is_dir()  # used just now
    assert list(cache.RANKINGS.place().iterdir()) == []
    assert last_json(run_here("clean", "--kind", "preparations", "--all", "--format", "json"))["foreign"] == []
    assert list(cache.PREPARATIONS.place().iterdir()) == []


def test_a_disk_is_full_by_the_sum_of_what_goes_to_it(mounted):
    disk = mounted("size=1m")
    store.refuse_full_disk({disk / "out": 600_000, disk / "cache": 0})
    with pytest.raises(BuildError, match=r"out and .*cache is too full: this job needs about 1 MB, and 1 MB are free"):
        store.refuse_full_disk({disk / "out": 600_000, disk / "cache": 600_000})
