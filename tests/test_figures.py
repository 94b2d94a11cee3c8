"""Figures of an earlier run: used again where all is what it was, measured again where anything is not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from exporter import machine, store
from exporter.job import Job
from exporter.measure import load
from exporter.measure.latency import Budget
from exporter.pipeline.figures import FOLDER, Figures
from exporter.pipeline.output import continues
from exporter.pipeline.sections import read_sections
from exporter.types import Checkpoint, Variant

pytestmark = pytest.mark.quick

ONNX = Variant("onnx", "fp32")
GROUPS = {"artifact": {"engine": "one"}, "quality": {"kl": {"value": 0.1, "se": None, "detail": None}}}
FLAGS = ("--eval-tokens", "256", "--threads", "1", "--repeats", "2")


@pytest.fixture
def folder(tmp_path):
    """An output folder with an artifact and a reference."""
    for name in ("onnx-fp32", "reference"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        store.write_manifest(tmp_path / name, "key", ["file"], {})
    return tmp_path


def told(folder, **changes):
    checkpoint = Checkpoint(folder / "checkpoint", "text-generation", "a", "0" * 64, 7)
    asked = {"variant": ["onnx", "fp32"], "checkpoint": checkpoint, "folder": folder / "onnx-fp32", "threads": 2}
    return asked | {"reference": folder / "reference" / "reference.npz"} | changes


def found(folder, kind="quality", evaluation=1, **changes):
    figures = Figures(folder, {"text": evaluation}, use=True)
    return figures.find(kind, ONNX, figures.depends_on(kind, ONNX, told(folder, **changes)))


@pytest.fixture
def kept(folder):
    figures = Figures(folder, {"text": 1}, use=True)
    figures.keep("quality", ONNX, figures.depends_on("quality", ONNX, told(folder)), GROUPS)
    assert found(folder) == (GROUPS, None)
    return folder


def rewritten(folder):
    (folder / "file").write_text("other")
    store.write_manifest(folder, "key", ["file"], {})


def test_the_same_is_found_and_asked_for_again_it_is_not(kept):
    assert found(kept, kind="speed") == (None, None)  # there is none
    refused = Figures(kept, {"text": 1}, use=False)
    assert refused.find("quality", ONNX, refused.depends_on("quality", ONNX, told(kept))) == (None, None)


def test_anything_that_differs_is_measured_again_and_named(kept, monkeypatch):
    assert found(kept, threads=1) == (None, "since then changed: threads")
    assert found(kept, evaluation=2) == (None, "since then changed: the text, tokens or windows that are evaluated")
    assert found(kept, proven_length=9) == (None, "since then changed: proven_length")  # an argument that is new
    other = Checkpoint(kept / "checkpoint", "text-generation", "a", "1" * 64, 7)
    assert found(kept, checkpoint=other) == (None, "since then changed: the checkpoint")
    monkeypatch.setenv("ORT_SOMETHING", "1")
    assert found(kept) == (None, "since then changed: engines' environment variables")
    monkeypatch.undo()
    for name, value in (("versions", {"onnxruntime": "0.1"}), ("cpu_name", "another")):
        monkeypatch.setattr(machine, name, lambda value=value: value)
        assert found(kept) == (None, f"since then changed: {'machine' if name == 'cpu_name' else name}")
        monkeypatch.undo()
    rewritten(kept / "onnx-fp32")
    assert found(kept) == (None, "since then changed: the artifact")
    rewritten(kept / "reference")
    assert found(kept) == (None, "since then changed: the artifact, the reference's answers")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("0.1,", "0.01,"),
        lambda text: text[:-40],
        lambda text: "[]",
        lambda text: '{"quality": {"measured": {}}}',
        lambda text: "",
    ],
)
def test_damaged_figures_are_none(kept, damage):
    file = kept / FOLDER / "onnx-fp32.json"
    assert damage(file.read_text()) != file.read_text()
    file.write_text(damage(file.read_text()))
    assert found(kept) == (None, "what was stored of it is damaged")


def test_what_is_no_number_is_not_kept(folder):
    figures = Figures(folder, {}, use=True)
    parts = figures.depends_on("quality", ONNX, told(folder))
    figures.keep("quality", ONNX, parts, {"quality": {"ppl": {"value": float("inf")}}})
    assert not (folder / FOLDER).exists()


def test_speed_is_of_this_very_machine(folder, monkeypatch):
    figures = Figures(folder, {"text": 1}, use=True)
    for kind in ("quality", "speed"):
        figures.keep(kind, ONNX, figures.depends_on(kind, ONNX, told(folder)), GROUPS)
    monkeypatch.setattr(machine, "usable_cores", lambda: 999)
    assert found(folder, kind="speed") == (None, "since then changed: machine")
    assert found(folder) == (GROUPS, None)


def test_a_job_that_only_adds_targets_or_changes_gates_goes_on_from_the_earlier_one(tmp_path):
    def job(**keys):
        return Job.model_validate({"model": "tiny", "output": tmp_path, "target": ["onnx:fp32"]} | keys)

    def goes_on(**keys):
        now = job(**keys)
        return continues(read_sections(now).identity(now), earlier)

    first = job(max_kl=0.1)
    earlier = json.loads(json.dumps(read_sections(first).identity(first)))
    assert goes_on(min_top1=0.5)
    assert goes_on(target=["onnx:fp16", "onnx:fp32"], speed_budget=9, remeasure=True)
    assert goes_on(gguf={"imatrix": "auto"}, qat=False)  # a default that is written out
    assert not goes_on(gguf={"imatrix": "off"})
    assert not goes_on(target=["onnx:fp16"])  # its artifact would be removed
    assert not goes_on(eval_tokens=99)
    assert not goes_on(model="other")


def test_a_budget_has_room_for_a_first_round_and_for_those_that_fit():
    assert [Budget(1e-9).another(done) for done in (0, 1)] == [True, False]
    budget = Budget(1e9)
    assert [budget.another(done) for done in (0, 1, 2)] == [True] * 3
    budget = Budget(0.5)
    assert budget.another(0)
    time.sleep(0.3)
    assert not budget.another(1)  # the next would end beyond it


SPIN = "import time\nwhile time.process_time() < 0.3: pass"


@pytest.mark.program
def test_what_this_program_starts_is_not_others_load():
    before = load._own_seconds()
    subprocess.run([sys.executable, "-c", SPIN], check=True)
    assert load._own_seconds() - before > 0.25  # of a child that has ended
    child = subprocess.Popen([sys.executable, "-c", f"{SPIN}\nprint(flush=True)\ninput()"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert child.stdout.readline() == "\n"
    alive = load._own_seconds()
    assert alive - before > 0.5  # and of one that lives
    child.communicate("\n")
    assert load._own_seconds() >= alive  # whose time stays when it ends


@pytest.mark.program
def test_what_others_compute_is_their_load():
    """A process that is no child of this one: started by one that has ended, in a session of its own."""
    watched, own, start = load.OtherLoad(), load._own_seconds(), time.perf_counter()
    spin = "import os, time\nprint(os.getpid(), flush=True)\nos.close(1)\nwhile time.process_time() < 0.6: pass"
    code = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {spin!r}], start_new_session=True)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    other = psutil.Process(int(done.stdout))
    other.wait(timeout=120)
    assert watched.cores() * (time.perf_counter() - start) > 0.5
    assert load._own_seconds() - own < 0.5


@pytest.fixture(scope="module")
def first(run_here, tmp_path_factory):
    """A run's output, which each test copies."""
    out = tmp_path_factory.mktemp("figures") / "out"
    done = run_here("run", "-m", "tiny", *FLAGS, "-t", "onnx:fp32", "-t", "onnx:int8-weight", "-o", out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def again(run_here, first, out):
    """again(*flags): the job once more, with flags more or other ones; what was measured (by the logs), the report."""
    shutil.copytree(first, out)

    def run(*flags, targets=("onnx:fp32", "onnx:int8-weight"), status=0):
        shutil.rmtree(out / "logs")
        asked = [word for target in targets for word in ("-t", target)]
        done = run_here("run", "-m", "tiny", *FLAGS, *asked, "-o", out, *flags)
        assert done.returncode == status, done.stderr
        logs = {path.name.removesuffix(".log") for path in out.glob("logs/*.log")} - {"prepare"}
        report = json.loads((out / "report.json").read_text())
        return SimpleNamespace(
            logs=logs, rows={f"{row['target']}-{row['precision']}": row for row in report["results"]}
        )

    return run


def rows_of(folder: Path):
    report = json.loads((folder / "report.json").read_text())
    return {f"{row['target']}-{row['precision']}": row for row in report["results"]}


def test_an_identical_job_measures_nothing_and_says_the_same(again, first):
    second = again()
    assert second.logs == set()
    assert second.rows == rows_of(first)


def test_changed_gates_are_judged_on_the_stored_figures(again, first):
    second = again("--max-kl", "1e-9", status=3)
    assert second.logs == set()
    row = second.rows["onnx-int8-weight"]
    assert [gate["passed"] for gate in row["gates"] if gate["name"] == "max_kl"] == [False]
    assert row["quality"] == rows_of(first)["onnx-int8-weight"]["quality"]


def test_a_target_that_came_is_all_that_is_measured(again, first):
    """It was timed in another round than the others: the report compares it with none of them."""
    second = again(targets=("onnx:fp32", "onnx:fp16", "onnx:int8-weight"))
    assert second.logs == {f"onnx-fp16.{what}" for what in ("export", "quality", "speed")}
    before = rows_of(first)
    assert {name: second.rows[name] for name in before} == before
    rounds = {row["speed"]["measured"] for row in second.rows.values()}
    assert len(rounds) == 2
    assert second.rows["onnx-fp16"]["speed"]["measured"] == max(rounds)


def test_another_text_and_damaged_figures_are_measured_again(again, out, tiny):
    file = out / FOLDER / "onnx-fp32.json"
    stored = json.loads(file.read_text())
    stored["quality"]["measured"]["groups"]["quality"]["kl"]["value"] = 9.0
    file.write_text(json.dumps(stored))
    second = again()
    assert second.logs == {"onnx-fp32.quality"}
    assert "quality measured again: what was stored of it is damaged" in second.rows["onnx-fp32"]["reason"]
    assert second.rows["onnx-fp32"]["quality"]["kl"]["value"] < 1
    third = again("--eval-text", tiny / "adapter" / "eval.txt", "--force", "--no-speed")
    assert {log for log in third.logs if log.endswith("quality")} == {"onnx-fp32.quality", "onnx-int8-weight.quality"}
    assert "the reference's answers" in third.rows["onnx-int8-weight"]["reason"]


def test_asked_for_all_is_measured_again_and_within_its_budget(again):
    second = again("--remeasure", "--speed-budget", "0.001")
    assert {log.partition(".")[2] for log in second.logs} == {"quality", "speed"}
    assert [row["speed"]["rounds"] for row in second.rows.values()] == [1, 1, 1]
    assert len({row["speed"]["measured"] for row in second.rows.values()}) == 1
    assert again("--speed-budget", "0.001").logs == set()  # no more rounds would fit
    assert {log.partition(".")[2] for log in again().logs} == {"speed"}  # now there is time for both rounds
