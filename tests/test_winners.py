"""Which artifact the report says to take: of what passed, within the noise of what was timed, in every form."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from reports import ROWS, encoder, generation, hostile, judged, nothing
from rich.console import Console
from test_report import all_forms, timed

from exporter.pipeline.readme import line_of
from exporter.report.render import render_html, render_markdown
from exporter.report.terminal import print_winners
from exporter.report.winners import NOTHING, told, winners
from exporter.targets.torch.target import TORCH

pytestmark = pytest.mark.quick

YESTERDAY = {"measured": "2026-11-25T10:00:00+00:00"}


def named(report):
    """{what: the variants}"""
    found = {}
    for winner in winners(report):
        found.setdefault(winner["what"], []).append(winner["variant"])
    return found


def facts(report):
    """The words of each, by its title."""
    return {one.title: list(one.facts) for one in told(judged(report))}


def milliseconds(p50, p90):
    """A row's speed, of which each phase had these percentiles."""
    latency = {phase: {"p50": p50, "p90": p90, "p99": None} for phase in ("prefill", "decode")}
    return {"latency_ms": latency, "decode_tokens_per_s": 1000 / p50, "prefill_tokens_per_s": 512_000 / p50}


def test_the_best_of_those_that_passed_is_named():
    """onnx:int4-weight is smaller and faster than most, and failed a gate; gguf:q4_k_m is best in all."""
    best = "gguf:q4_k_m"
    assert named(generation()) == {"smallest": [best], "fastest decode": [best], "fastest prefill": [best]}
    assert winners(generation())[0] == {"what": "smallest", "variant": best, "folder": "gguf-q4_k_m", "run": None}


def test_several_titles_of_one_are_one_line_in_every_form():
    for text in all_forms(generation()):
        assert text.count("within the gates") == 1
        assert "Smallest, fastest decode and fastest prefill within the gates" in text
        assert "105.5 MB, 0.20 × the reference's" in text
        assert "decode 88.4 tokens/s, 6.2 × the reference's" in text
        assert "try-it out/gguf-q4_k_m --say 'a b'" in text
    assert "  folder: out/gguf-q4_k_m\n  run it: try-it out/gguf-q4_k_m --say 'a b'\n" in text


def test_each_title_has_its_own_winner():
    report = timed({}, milliseconds(10, 11), milliseconds(20, 21))
    assert named(report) == {
        "smallest": ["onnx:int8-weight"], "fastest decode": ["onnx:fp32"], "fastest prefill": ["onnx:fp32"],
    }  # fmt: skip
    assert list(facts(report)) == ["Smallest within the gates", "Fastest decode and fastest prefill within the gates"]


@pytest.mark.parametrize("kind", ["a failed gate", "no gates", "failed", "skipped", "no folder"])
def test_what_did_not_pass_is_never_named(kind):
    report = timed({}, {})
    row = report["results"][1]
    if kind == "a failed gate":
        row["gates"][0]["passed"] = False
    elif kind == "no gates":
        row["gates"] = []
    elif kind == "no folder":
        row["path"] = None
    else:
        row["status"] = kind
    assert winners(report) == []
    for text in all_forms(judged(report)):
        assert (NOTHING in text) is (kind != "no folder")
        assert "within the gates" not in text


def test_the_reference_is_no_artifact():
    assert winners(generation(ROWS[:1])) == []
    for text in all_forms(generation(ROWS[:1])):
        assert NOTHING not in text  # there was nothing to pass
    assert NOTHING in render_markdown(nothing())


def test_an_encoder_has_no_decode_and_what_was_not_timed_has_no_speed():
    best = "onnx:int8-weight"
    assert named(encoder()) == {"smallest": [best], "fastest prefill": [best]}
    untimed = {"prefill_tokens_per_s": None, "decode_tokens_per_s": None, "latency_ms": None}
    assert named(timed(untimed, untimed, untimed)) == {"smallest": [best]}


def test_rows_that_their_spread_does_not_tell_apart_are_both_named_the_smaller_first():
    """10.0 and 10.9 ms: the slow calls of the one took 11.0. By a tenth of a millisecond more they are apart."""
    report = timed({}, milliseconds(10.0, 11.0), milliseconds(10.9, 11.0))
    assert named(report)["fastest decode"] == ["onnx:int8-weight", "onnx:fp32"]
    assert list(facts(report)) == ["Smallest, fastest decode and fastest prefill within the gates"]
    for text in all_forms(report):
        assert "decode 91.7 tokens/s, 6.5 × the reference's; as fast within the spread: onnx:fp32" in text
    assert named(timed({}, milliseconds(10.0, 11.0), milliseconds(11.1, 11.2)))["fastest decode"] == ["onnx:fp32"]
    # The spread of either counts: the slower one's slow calls say that it was disturbed.
    both = named(timed({}, milliseconds(10.0, 10.1), milliseconds(11.1, 13.0)))["fastest decode"]
    assert both == ["onnx:int8-weight", "onnx:fp32"]


def test_of_a_model_with_few_positions_the_short_prompt_has_the_spread():
    first, second = milliseconds(10.0, 11.0), milliseconds(10.9, 11.0)
    for speed in (first, second):
        speed["latency_ms"]["prefill_128"] = speed["latency_ms"].pop("prefill")
    assert len(named(timed({}, first, second))["fastest prefill"]) == 2


def test_two_of_one_size_are_both_named():
    report = timed({}, {}, {})
    report["results"][1]["artifact"] = dict(report["results"][2]["artifact"])
    assert named(report)["smallest"] == ["onnx:fp32", "onnx:int8-weight"]
    assert "as small: onnx:int8-weight" in facts(report)["Smallest within the gates"][0]


def test_rows_of_one_round_only_are_compared():
    """The fastest was timed yesterday: it is not what is named, and the line says that one was left out."""
    report = timed({}, {}, YESTERDAY)
    assert named(report)["fastest decode"] == ["onnx:fp32"]
    title = "Fastest decode and fastest prefill within the gates"
    assert facts(report)[title][0] == (
        "decode 22.8 tokens/s, 1.6 × the reference's; 1 timed in another round: not compared"
    )
    for text in all_forms(judged(report)):
        assert "speed of onnx:int8-weight: timed in another round (2026-11-25 10:00) than the reference's" in text
    alone = timed({}, YESTERDAY, YESTERDAY)
    assert named(alone)["fastest decode"] == ["onnx:int8-weight"]
    assert facts(alone)["Smallest, fastest decode and fastest prefill within the gates"][1] == (
        "decode 41.7 tokens/s; timed in another round than the reference: not compared"
    )


def test_a_speed_on_a_busy_machine_is_named_with_its_warning():
    title = "Smallest, fastest decode and fastest prefill within the gates"
    assert facts(timed({}, {}, {"other_cores": 7.9}))[title][1].endswith("; ⚠ on a busy machine")
    assert facts(timed({}, {"other_cores": 7.9}, {}))[title][1].endswith(
        "; ⚠ on a busy machine"
    )  # its rival was slowed
    assert "⚠" not in facts(timed({}, {}, {}))[title][1]


def test_names_that_mean_harm_are_text_in_every_form():
    report = hostile()
    html, markdown = render_html(report), render_markdown(report)
    assert "<script>alert" not in html + markdown
    line = next(line for line in markdown.splitlines() if line.startswith("  <pre>"))
    assert line.endswith("x" * 900 + "</pre>")  # whole
    assert "<" not in line.removeprefix("  <pre>").removesuffix("</pre>")
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    print_winners(report, Path("out\x1b[31m"), console)
    shown = console.file.getvalue()
    assert "\x1b[31m" not in shown
    assert "\x07" not in shown


def test_the_line_of_a_target_has_the_folder_as_a_shell_reads_it():
    target = replace(TORCH, run="look-at {folder}/model --again {folder} {example}")
    told = line_of(target, Path("out/one-fp16"), "text-generation")
    assert told == "look-at out/one-fp16/model --again out/one-fp16 'Once upon a time'"
    told = line_of(target, Path("my out; ls"), "image-classification")
    assert told == "look-at 'my out; ls'/model --again 'my out; ls' picture.png"
    assert line_of(replace(TORCH, run=""), Path("out"), "text-generation") is None
