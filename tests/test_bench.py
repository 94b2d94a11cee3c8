"""bench/: pages say what the results say, and a result holds what it must."""

import json
import re
import subprocess
from datetime import datetime

import pytest
from bench_results import RESULTS, change, copy, result, run_module
from conftest import ROOT

from bench import record
from bench.__main__ import PROGRAMS
from bench.render import marked, pages, render
from bench.rows import verdict
from bench.sections import SECTIONS, UNMEASURED

pytestmark = pytest.mark.quick

FIELDS = {
    "schema_version", "name", "command", "date", "commit", "machine", "versions", "unknown", "taken_over", "reports",
    "figures",
}  # fmt: skip


@pytest.fixture
def checkout(tmp_path):
    return copy(tmp_path)


def texts(checkout):
    return {str(path.relative_to(checkout)): path.read_text() for path in pages(checkout)}


def test_every_page_says_what_the_results_say():
    assert render(ROOT, check=True) == 0


def test_every_program_has_a_result_that_the_pages_show_all_of_once():
    shown = [mark for page in pages(ROOT) for mark, _, _ in marked(page.read_text())]
    names = {mark.name for mark in shown}
    there = {path.stem for path in RESULTS.glob("*.json")}
    assert names == {*PROGRAMS, *UNMEASURED} == set(SECTIONS) == there | set(UNMEASURED)
    for name in there:
        models = sorted(mark.model for mark in shown if mark.name == name)
        assert models in ([""], sorted({report["name"] for report in result(name)["reports"]})), name


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_result_says_what_it_takes_to_measure_it_again(name):
    held = result(name)
    assert set(held) == FIELDS
    assert held["name"] == name
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", held["commit"])
    assert datetime.fromisoformat(held["date"]).tzinfo is not None
    empty = {f"machine.{key}" for key, value in held["machine"].items() if value is None and key != "gpu"}
    assert empty | (set() if held["versions"] else {"versions"}) <= set(held["unknown"])
    assert str(ROOT) not in json.dumps(held)


FIGURES = {  # of each program, one of each kind that its text shows; a run's first row is the reference's
    "quality": {
        "reports.0.results.3.artifact.bytes": 271_260_000, "reports.0.results.3.quality.ppl_ratio.se": 0.0002,
        "reports.1.results.2.speed.latency_ms.prefill.p50": 90.2, "reports.0.results.4.verdict": "failed",
        "reports.2.results.1.build.export_peak_rss_bytes": 1_175_000_000, "figures.parts_s.trace": 7.6,
        "machine.cores": 3, "versions.torch": "2.14.0", "reports.1.machine.load_average.0": 2.1,
    },
    "policy": {
        "reports.1.results.-1.build.quantization.seconds": 456, "figures.four_bits_s.QAT": 98,
        "figures.integer_kernels.smollm2-135m.onnx:int8-static": "92%", "figures.calibrated_tokens": 32767,
        "reports.8.results.-1.quality.kl.value": 0.0034, "reports.6.results.-1.quality.cosine.value": 0.4444,
    },
    "gguf": {
        "reports.0.results.4.quality.kl.value": 0.0064, "figures.with_matrix": [], "figures.by_hand_total_s": 10.7,
        "reports.1.results.-1.speed.decode_tokens_per_s": 123.3, "reports.0.job.eval_tokens": 8193,
    },
    "tensorrt": {
        "reports.1.results.-1.build.engine.int8_share": 0.94, "reports.4.results.-1.speed.untimed": "no driver",
        "figures.export_peak_over_fp32.smollm2-135m to tensorrt-rtx:fp16": 3.66,
        "reports.0.results.-1.build.engine.seconds.build": 6.0,
    },
    "coreml": {
        "reports.0.results.-1.quality.kl.value": 0.02, "reports.7.results.-1.quality.cosine.value": 0.9,
        "figures.rows.smollm2-135m to coreml:int8.bare.s": 40.0, "figures.evaluator.float32.ppl_ratio": 1.5,
        "figures.rows.all-minilm-l6-v2 to coreml:int4.size_over_ideal": 1.4, "versions.coremltools": "10.0",
        "reports.2.results.-1.build.quantization.seconds": 900,
    },
    "litert": {
        "reports.0.results.2.quality.kl.value": 0.7, "reports.1.results.1.quality.logit_error.value": 0.5,
        "reports.1.results.-1.speed.latency_ms.prefill_128.p50": 99.9, "reports.0.results.1.artifact.bytes": 1_000_000,
        "figures.conversion.smollm2-135m.bare.s": 4.0, "versions.litert-torch": "1.0",
    },
    "shapes": {
        "figures.exports.T5-small.exporter.s": 999.9, "reports.0.results.2.artifact.bytes": 1_000_000,
        "reports.2.results.1.speed.latency_ms.picture.p50": 777.7, "figures.exports.ViT-base.optimum.bytes": 1_000_000,
        "reports.1.results.1.speed.decode_tokens_per_s": 55.5,
    },
    "prune": {
        "reports.0.results.1.quality.ppl_ratio.value": 1.5, "figures.calibrated_tokens": 1,
        "reports.1.results.1.artifact.bytes": 7_000_000, "machine.cores": 3,
        "reports.0.results.0.speed.decode_tokens_per_s": 99.9,
    },
    "families": {
        "figures.families.0.architecture": "LamaForCausalLM", "figures.families.-1.name": "xlnet-2",
        "machine.cores": 3, "figures.decoders": 67,
    },
    "merge": {"figures.cp_s": 40, "figures.merges.1.share_of_cp": 0.51, "figures.merges.0.modules_proven": 61},
    "growth": {"figures.policies.-1.cpu_s": 777.7, "figures.policies.0.model": "another", "machine.cores": 3},
    "calibration": {"figures.plain_s": 68.9, "figures.peak_rss_bytes": 1_360_000_000, "command": "python -m other"},
}  # fmt: skip


@pytest.mark.parametrize(("name", "path"), [(name, path) for name in FIGURES for path in FIGURES[name]])
def test_a_changed_figure_is_noticed_and_written(name, path, checkout, capsys):
    before = texts(checkout)
    change(checkout, name, path, FIGURES[name][path])
    assert render(checkout, check=True) == 3
    told = capsys.readouterr().out
    assert texts(checkout) == before
    assert render(checkout, check=False) == 0
    after = texts(checkout)
    assert told == "".join(f"{page}: differs from {name}\n" for page in before if after[page] != before[page])
    lines = [(old.splitlines(), new.splitlines()) for old, new in zip(before.values(), after.values(), strict=True)]
    assert 1 <= sum(one != other for old, new in lines for one, other in zip(old, new, strict=True)) <= 11
    assert render(checkout, check=True) == 0


def test_a_page_that_was_changed_by_hand_is_noticed(checkout):
    page = checkout / "README.md"
    page.write_text(page.read_text().replace("| failed |", "| passed |"))
    assert render(checkout, check=True) == 3


def test_documents_take_the_same_text(checkout):
    place = checkout / "docs" / "elsewhere"
    place.mkdir()
    (place / "gguf.md").write_text(
        "# GGUF\n<!-- bench/results/gguf.json: begin -->\n<!-- bench/results/gguf.json: end -->\nafter\n"
    )
    assert render(checkout, check=True) == 3
    assert render(checkout, check=False) == 0
    text = (place / "gguf.md").read_text()
    assert text.startswith("# GGUF\n<!-- bench/results/gguf.json: begin -->\n**smollm2-135m**, 8,191 of 8,192 tokens")
    assert text.endswith("llama-cpp-python 0.3.36.\n<!-- bench/results/gguf.json: end -->\nafter\n")


def test_rows_that_were_taken_over_from_a_page_make_the_same_text(checkout):
    """They bring its word where measured rows bring gates, and no more figures than it shows."""
    taken = result("quality")
    for report in taken["reports"]:
        for row in report["results"]:
            row["verdict"] = verdict(row)
            del row["gates"]
            del row["quality"]["cache_kl"]
    (checkout / "bench" / "results" / "quality.json").write_text(json.dumps(taken))
    assert render(checkout, check=True) == 0


@pytest.mark.parametrize(
    ("page", "old", "new", "said"),
    [
        ("gguf", "f.json: end", "r.json: end", "the mark '<!-- bench/results/gguf.json: begin -->' has no end before"),
        ("gguf", "gguf.json", "ggml.json", "a mark names ggml.json; there are: quality,"),
        ("gguf", "gguf.json", "gguf.json tiny", "a mark names tiny, and gguf.json is shown as a whole; by model: qua"),
        ("onnx", "all-minilm-l6-v2: ", "minilm: ", "a mark names minilm, and quality.json has: smollm2-135m, all-"),
    ],
)
def test_a_mark_that_is_wrong_is_told_and_nothing_is_written(page, old, new, said, checkout, capsys):
    path = checkout / "docs" / "targets" / f"{page}.md"
    path.write_text(path.read_text().replace(old, new))
    change(checkout, "merge", "figures.cp_s", 40)
    before = texts(checkout)
    assert render(checkout, check=False) == 2
    assert capsys.readouterr().err.startswith(f"error: docs/targets/{page}.md: {said}")
    assert texts(checkout) == before


def test_a_result_that_is_not_there_is_told(checkout, capsys):
    (checkout / "bench" / "results" / "merge.json").unlink()
    assert render(checkout, check=True) == 2
    assert "bench/results/merge.json cannot be read" in capsys.readouterr().err


@pytest.mark.program
def test_an_unknown_bench_is_one_line():
    done = run_module("bench", "ggu")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown bench 'ggu'; did you mean gguf? (make bench ONLY=gguf)\n"
    done = run_module("bench", "gguf", "--text", ROOT / "no.txt")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_a_result_has_all_its_fields_and_no_folder_of_this_machine(tmp_path):
    about = record.begin("gguf", 2)
    held = {
        "name": "tiny", "model": {"task": "text-generation", "source": str(ROOT / "models" / "tiny")},
        "machine": {"threads": 2, "load_average": [0.1, 0.2, 0.3], "cpu": "of the result"},
        "evaluation": {"text": "eval.txt"}, "results": [{"target": "onnx", "reason": f"see {tmp_path}/log"}],
    }  # fmt: skip
    job = {"eval_text": tmp_path / "wiki.test.raw", "threads": 2}
    of_another = record.report(held | {"name": "another"}, "one", job)  # a label is of one model's reports
    file = record.write(about, [record.report(held, "one", job), of_another], {"whole_s": 1.5}, tmp_path)
    written = json.loads(file.read_text())
    assert set(written) == FIELDS
    assert file.name == "gguf.json"
    assert written["machine"]["cores"] >= 1
    assert written["versions"]["torch"]
    report, _ = written["reports"]
    assert set(report) == {"label", "name", "model", "job", "evaluation", "machine", "results"}
    assert report["job"]["eval_text"] == "wiki.test.raw"
    assert report["model"]["source"] == "models/tiny"
    assert str(tmp_path.parent.parent.parent) not in file.read_text()
    with pytest.raises(AssertionError):  # a row would be known by the same words as another
        record.write(about, [record.report(held, "one", job)] * 2, {}, tmp_path)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["--text", "/data/wiki.test.raw"], "--text wiki.test.raw"),
        (["--text=../shared/a b.txt", "--again"], "'--text=a b.txt' --again"),
        (["/home/me/model", "--windows", "16"], "model --windows 16"),
    ],
)
def test_a_command_is_told_without_folders(typed, told):
    assert record.command_line("x", typed) == f"python -m bench.x {told}"


def test_a_commit_is_dirty_where_code_was_changed_not_where_results_were(tmp_path):
    assert record.commit(tmp_path) is None

    def git(*words):
        name = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(["git", *name, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    (tmp_path / "bench" / "results").mkdir(parents=True)
    for name in ("code.py", "README.md", "bench/results/gguf.json"):
        (tmp_path / name).write_text("one")
    git("add", ".")
    git("commit", "-qm", "one")
    head = git("rev-parse", "HEAD").strip()
    assert record.commit(tmp_path) == head
    for name in ("README.md", "bench/results/gguf.json"):
        (tmp_path / name).write_text("two")
    assert record.commit(tmp_path) == head
    (tmp_path / "code.py").write_text("two")
    assert record.commit(tmp_path) == f"{head}-dirty"
