"""bench/compare.py: what got slower, larger or worse is named, and nothing else is."""

import json
import re

import pytest
from bench_results import RESULTS, at, change, copy, put, result, run_module
from conftest import ROOT


@pytest.fixture
def checkout(tmp_path):
    return copy(tmp_path)


def compared(*words):
    done = run_module("bench.compare", *words)
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_equal_results_have_nothing_beyond_a_limit():
    status, lines, _ = compared(RESULTS, RESULTS)
    assert status == 0
    assert re.fullmatch(r"([2-9]\d\d|[1-9]\d{3,}) figures compared: 0 slower, 0 larger, 0 worse", lines[-1])


def measured(path, times=1.0, errors=0.0):
    """What the committed result of quality has there, so many times, and so many of its standard errors more."""
    held = result("quality")
    return at(held, path) * times + (errors and errors * at(held, path.replace(".value", ".se")))


DECODE, LATENCY = "reports.0.results.5.speed.decode_tokens_per_s", "reports.1.results.3.speed.latency_ms.prefill.p50"
BYTES, MEMORY = "reports.0.results.3.artifact.bytes", "reports.0.results.3.memory.peak_rss_bytes"
RATIO = "reports.0.results.4.quality.ppl_ratio.value"
WORSE = [  # path, new value: what is said of it
    (DECODE, measured(DECODE, 0.89), "slower .* -11.0%"),
    (LATENCY, measured(LATENCY, 1.11), r"slower .*latency_ms\.prefill\.p50 .* \+11.0%"),
    ("figures.whole_s", measured("figures.whole_s", 1.2), r"slower +quality +whole_s .* \+20.0%"),
    (BYTES, measured(BYTES, 1.02), "larger .*onnx:fp16 .* \\+2.0%"),
    (MEMORY, measured(MEMORY, 1.06), "larger .*peak_rss_bytes .* \\+6.0%"),
    (RATIO, measured(RATIO, errors=2.1), "worse .* 2.1 standard errors"),
    ("reports.1.results.4.quality.cosine.value", 0.9999, "worse .*quality.cosine"),
    ("reports.0.results.4.quality.kl.value", 0.00374 * 1.06, "worse .*quality.kl"),
    ("reports.0.results.4.verdict", "failed", "worse .*int8-weight +gates +passed +failed"),
]
NO_WORSE = [
    (DECODE, measured(DECODE, 0.91)),
    (DECODE, 300.0),
    (LATENCY, 24.0),
    (BYTES, 200_000_000),
    (MEMORY, measured(MEMORY, 1.04)),
    (RATIO, measured(RATIO, errors=1.9)),
    (RATIO, 0.9),
    ("reports.0.results.3.quality.kl.value", 0.00004),
    ("reports.0.results.5.verdict", "passed"),
]


@pytest.mark.parametrize(("path", "new", "said"), WORSE)
def test_what_got_worse_is_named_and_exits_3(path, new, said, checkout):
    change(checkout, "quality", path, new)
    status, lines, _ = compared(RESULTS / "quality.json", checkout / "bench" / "results" / "quality.json")
    assert status == 3
    [line] = lines[:-1]
    assert re.match(said, line), line
    assert lines[-1].count(" 1 ") == 1
    assert compared(checkout / "bench" / "results" / "quality.json", RESULTS / "quality.json")[0] == 0


@pytest.mark.parametrize(("path", "new"), NO_WORSE)
def test_what_is_within_its_limit_or_better_is_not(path, new, checkout):
    change(checkout, "quality", path, new)
    status, lines, _ = compared(RESULTS, checkout / "bench" / "results")
    assert (status, [line for line in lines if "speeds are not compared" not in line]) == (0, lines[-1:])


def test_the_limits_can_be_set(checkout):
    change(checkout, "quality", DECODE, measured(DECODE, 0.85))
    change(checkout, "gguf", "reports.0.results.4.quality.ppl_ratio.value", 1.0090 + 3 * 0.0014)
    both = (RESULTS, checkout / "bench" / "results")
    assert compared(*both)[1][-1].endswith("1 slower, 0 larger, 1 worse")
    assert compared(*both, "--slower", "20%")[1][-1].endswith("0 slower, 0 larger, 1 worse")
    assert compared(*both, "--slower", "20%", "--worse", "3.5")[0] == 0


def test_another_machine_s_speeds_are_not_compared_and_that_is_said(checkout):
    changed = result("quality")
    put(changed, "machine.cpu", "Apple M4")
    put(changed, DECODE, 1.0)
    put(changed, "reports.0.results.5.artifact.bytes", 1_000_000_000)
    (checkout / "new.json").write_text(json.dumps(changed))
    status, lines, _ = compared(RESULTS / "quality.json", checkout / "new.json")
    assert status == 3
    old = result("quality")["machine"]["cpu"]
    assert lines[0].startswith(f"new: speeds are not compared, old is of {old}, 2 cores, 2 threads, new of Apple M4")
    assert [line.split()[0] for line in lines[1:-1]] == ["larger"]


def test_rows_that_are_new_or_gone_are_told_and_are_no_failure(checkout):
    changed = result("quality")
    changed["reports"][0]["results"][6]["precision"] = "int3-weight"
    (checkout / "new.json").write_text(json.dumps(changed))
    status, lines, _ = compared(RESULTS / "quality.json", checkout / "new.json")
    assert status == 0
    assert [line.split() for line in lines[:-1]] == [
        ["new", "smollm2-135m", "own", "schemes", "onnx:int3-weight"],
        ["gone", "smollm2-135m", "own", "schemes", "onnx:int4-weight"],
    ]


def test_quality_on_another_text_is_not_compared(checkout):
    changed = result("quality")
    put(changed, "reports.0.evaluation.text", "other.txt")
    put(changed, "reports.0.results.4.quality.ppl_ratio.value", 2.0)
    (checkout / "new.json").write_text(json.dumps(changed))
    status, lines, _ = compared(RESULTS / "quality.json", checkout / "new.json")
    assert status == 0
    assert "quality of smollm2-135m own schemes onnx:int8-weight is not compared" in "\n".join(lines)


def test_two_reports_are_compared(tmp_path):
    """report.json has a result's rows, under no label."""
    report = result("quality")["reports"][0] | {"machine": result("quality")["machine"], "schema_version": 2}
    del report["label"]
    for name, speed in (("old", 142.7), ("new", 100.0)):
        put(report, "results.5.speed.decode_tokens_per_s", speed)
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(report))
    status, lines, _ = compared(tmp_path / "old", tmp_path / "new" / "report.json")
    assert status == 3
    assert re.match(r"slower +smollm2-135m onnx:int8-dynamic +speed\.decode_tokens_per_s +142.7 +100 +-29.9%", lines[0])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((RESULTS,), "the following arguments are required: new"),
        ((RESULTS, RESULTS, "--slower", "10"), "give a percentage such as 10%, not '10'"),
        ((RESULTS, RESULTS, "--worse", "much"), "argument --worse"),
        ((RESULTS, ROOT / "exporter"), "holds no result"),
        ((RESULTS, ROOT / "README.md"), "is no result and no report.json"),
        ((RESULTS / "gguf.json", RESULTS / "merge.json"), "have no figure in common"),
    ],
)
def test_wrong_arguments_exit_2(words, said):
    status, lines, errors = compared(*words)
    assert (status, [line for line in lines if line.startswith(("slower", "larger", "worse"))]) == (2, [])
    assert said in errors
    assert "Traceback" not in errors


def test_an_older_report_is_told(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"machine": {}, "results": [{"ppl_ratio": 1.0}]}))
    status, _, errors = compared(tmp_path, tmp_path)
    assert (status, "its rows have no groups" in errors) == (2, True)
