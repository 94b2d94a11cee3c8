"""The report in all its forms, from a report.json as a run would write it, and from one that means harm."""

from __future__ import annotations

import io
import json
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from reports import HOSTILE, REPORTS, ROWS, SKIPPED, encoder, generation, hostile, judged
from rich.console import Console

from exporter.report import table
from exporter.report.columns import columns as columns_of
from exporter.report.columns import detail_columns
from exporter.report.files import write_report
from exporter.report.render import render_html, render_junit, render_markdown
from exporter.report.result import Figure, Result
from exporter.report.terminal import print_table, print_winners

pytestmark = pytest.mark.quick

VOID = {"meta", "br", "wbr", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Checks that tags are balanced, and keeps the text that a reader sees and every attribute."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


@pytest.mark.parametrize("kind", REPORTS)
def test_html_stands_alone(kind: str) -> None:
    html = render_html(REPORTS[kind]())
    page = Page(html)
    assert len(html.encode()) < 1_000_000
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not [a for a in page.attributes if a[1] in {"src", "href", "srcset", "action"} or a[1].startswith("on")]
    assert "url(" not in html
    assert "@import" not in html


def test_html_says_everything() -> None:
    page = Page(render_html(generation()))
    for text in ("onnx:int4-weight", "1.0124 ± 0.0011", "97.31%", "16,384", "134,515,008", "SIGSEGV", "4-bit grid"):
        assert text in page.text
    assert SKIPPED in page.text
    assert page.tags.count("svg") == 4 * 2 + 4  # four plots, wide and narrow, and the legend's marks
    labels = [value for tag, key, value in page.attributes if (tag, key) == ("svg", "aria-label")]
    assert len(labels) == 8
    assert "gguf:q4_k_m (passed): 1.031 at 105.5 MB" in str(labels[0])
    assert all(key != "scope" or value in {"row", "col"} for tag, key, value in page.attributes if tag == "th")


def test_a_training_is_drawn_and_told() -> None:
    report = generation()
    report["model"]["distill"] = None
    page = Page(render_html(report))
    lines = [value for tag, key, value in page.attributes if (tag, key) == ("polyline", "points")]
    assert len(lines) == 2 * 2  # KL and loss, wide and narrow
    points = [tuple(map(float, point.split(","))) for point in str(lines[0]).split()]
    assert len(points) == 50
    assert points == sorted(points)  # from left to right, and from above (a small y) downwards, for the KL falls
    told = "KL to the float model on the training text: 0.233 at the start, 0.023 at the end"
    for text in (page.text, render_markdown(report)):
        assert told in text.replace("\\", "")
    report["model"]["qat"] = None
    assert "Quantization-aware" not in Page(render_html(report)).text + render_markdown(report)


def test_a_distillation_is_drawn_and_told() -> None:
    report = generation()
    report["model"]["qat"] = None
    page = Page(render_html(report))
    lines = [value for tag, key, value in page.attributes if (tag, key) == ("polyline", "points")]
    assert [len(str(line).split()) for line in lines] == [50, 5] * 2  # the loss, and each look; wide and narrow
    for text in (page.text, render_markdown(report).replace("\\", "")):
        assert "0.5 temperature^2 KL at temperature 2 + 0.5 of the task's loss; teacher: llama; seed 0" in text
        assert "stopped after 200 of 300 steps: 3 looks at the held-out examples in a row had bettered nothing" in text
        assert "each step took 4 x 2 of 400 examples (204,800 tokens) of prose.txt, 16 more were held out" in text
        assert "1,000 weights that were 0 stayed 0" in text
    report["model"]["distill"] = None
    assert "Distillation" not in Page(render_html(report)).text + render_markdown(report)


def test_html_encoder_has_cosine_and_latency() -> None:
    page = Page(render_html(encoder()))
    assert "PPL" not in page.text
    assert "0.98760" in page.text
    assert "1 − cosine against latency" in page.text


def test_hostile_text_is_text() -> None:
    html = render_html(hostile())
    seen = Page(html).text
    assert "a|b`c*d_ <script>alert(1)</script> {{7*7}} {% raw %} \"q\" 'p'  @everyone </title> ]]>" in seen
    assert not re.search("[\x00-\x08\x0b-\x1f\ud800-\udfff]", html)
    markdown = render_markdown(hostile())
    assert "<script" not in markdown
    assert "@everyone" not in markdown
    assert "\x1b" not in markdown
    assert len(markdown) < 65_536


def test_markdown_table_has_a_row_for_each_result() -> None:
    for make in (generation, hostile, encoder):
        report = make()
        lines = render_markdown(report).splitlines()
        start = next(index for index, line in enumerate(lines) if line.startswith("|---"))
        rows = lines[start + 1 : lines.index("", start)]
        assert len(rows) == len(report["results"])
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in [lines[start - 1], lines[start], *rows]}) == 1
    text = render_markdown(generation())
    assert text.startswith("### exporter: `smollm2-135m-support-lora` failed ❌\n")
    assert "- `onnx:int4-weight` max\\_ppl\\_ratio is 1.0871, limit ≤ 1.05" in text
    assert "- `coreml:fp16`: coremltools runs" in text


@pytest.mark.parametrize("kind", REPORTS)
def test_junit_has_a_case_for_each_gate(kind: str) -> None:
    report = REPORTS[kind]()
    root = ET.fromstring(render_junit(report))
    gates = [gate for result in report["results"] for gate in result["gates"]]
    bare = [result for result in report["results"] if not result["gates"]]
    assert len(root.findall("testsuite/testcase")) == len(gates) + len(bare) == int(root.attrib["tests"])
    assert len(root.findall(".//failure")) == sum(not gate["passed"] for gate in gates) == int(root.attrib["failures"])
    for tag, status, total in (("error", "failed", "errors"), ("skipped", "skipped", "skipped")):
        count = sum(result["status"] == status for result in report["results"])
        assert len(root.findall(f".//{tag}")) == count == int(root.attrib[total])


def test_junit_says_value_and_limit() -> None:
    root = ET.fromstring(render_junit(generation()))
    case = root.find("testsuite/testcase[@classname='onnx:int4-weight'][@name='min_top1 ≥ 0.9']")
    assert case is not None
    failure = case.find("failure")
    assert failure is not None
    assert failure.attrib["message"] == "min_top1 is 0.8893, limit ≥ 0.9"
    skipped = root.find(".//skipped")
    assert skipped is not None
    assert skipped.attrib["message"] == SKIPPED


def test_a_failed_row_whose_gates_all_passed_is_an_error() -> None:
    report = generation(ROWS[:3])
    report["results"][2].update(status="failed", reason="the engine died after the gates")
    assert ET.fromstring(render_junit(report)).attrib["errors"] == "1"
    assert "the engine died" in Page(render_html(report)).text


@pytest.mark.parametrize("kind", REPORTS)
def test_terminal_table(kind: str) -> None:
    report = REPORTS[kind]()
    console = Console(file=io.StringIO(), width=100, force_terminal=False, color_system=None)
    print_table(report, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]  # rich types its file as IO[str]; it is a StringIO
    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines()) <= 100
    if kind == "generation":
        assert re.search(r"onnx:int8-weight +passed 4/4 +164\.2 +0\.31 +1\.0124 ± 0\.0011 .* 449\.9\n", text)
        assert "onnx:int4-weight  min_top1 is 0.8893, limit ≥ 0.9" in text
        assert "coreml:fp16  skipped: coremltools runs" in text


def test_write_is_atomic(tmp_path: Path) -> None:
    report = generation()
    write_report(report, tmp_path)
    write_report(report, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.html", "report.md", "junit.xml"}
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert list(json.loads((tmp_path / "report.json").read_text())) == list(report)


def test_nan_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    report = generation()
    report["results"][0]["quality"]["kl"]["value"] = math.nan
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(report, tmp_path)
    assert not list(tmp_path.iterdir())


def test_hostile_report_is_written(tmp_path: Path) -> None:
    write_report(hostile(), tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["name"] == HOSTILE


def test_a_number_never_looks_better_than_it_is() -> None:
    gate = {"name": "max_kl", "limit": 0.05, "value": 0.0500000001, "passed": False}
    assert (table.gate_value(gate), table.gate_limit(gate)) == ("0.0500000001", "≤ 0.05")
    quality = {"top1": Figure(0.999999), "cosine": Figure(0.9999999), "ppl_ratio": Figure(1234.5, 7.0)}
    almost = Result("onnx", "fp32", quality=quality).to_json()
    cells = [column.cell(almost) for column in columns_of(generation([almost]))]
    assert cells == ["1,234.5 ± 7", "0.99999", "99.99%"]
    assert [column.cell(almost) for column in detail_columns(generation([almost]))] == ["0.99999"]


def timed(*speeds: dict) -> dict:
    """A report whose rows were timed so; of a machine with eight cores."""
    report = generation(ROWS[: len(speeds)])
    for result, speed in zip(report["results"], speeds, strict=True):
        result["speed"] |= {"measured": "2026-11-26T10:00:00+00:00", "rounds": 5, "rounds_asked": 5, "budget_s": 300}
        result["speed"] |= {"other_cores": 0.1} | speed
        result["gates"] = [gate | {"passed": True} for gate in result["gates"]]
    return judged(report)


def all_forms(report: dict) -> list[str]:
    """What a reader sees of it: on the page, in a comment, on a terminal."""
    console = Console(file=io.StringIO(), width=200, force_terminal=False, color_system=None)
    print_table(report, console)
    print_winners(report, Path("out"), console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]  # rich types its file as IO[str]; it is a StringIO
    return [Page(render_html(report)).text, render_markdown(report).replace("\\", ""), shown]


def test_a_speed_beside_busy_processes_has_a_warning_at_the_figure():
    for text in all_forms(timed({}, {"other_cores": 2.1}, {"other_cores": 2.0})):
        assert "22.8 ⚠" in text
        assert "41.7 ⚠" not in text  # a quarter is not beyond a quarter
        assert "speed of onnx:fp32: ⚠ other processes kept 2.1 of 8 cores busy while it was measured" in text


def test_rounds_that_the_time_limit_left_out_are_told():
    for text in all_forms(timed({}, {}, {"rounds": 2, "budget_s": 12.5})):
        assert "speed of onnx:int8-weight: 2 of 5 rounds; --speed-budget 12.5, in seconds, had no room" in text
    for text in all_forms(timed({"rounds": 1}, {"rounds": 1}, {"rounds": 1})):
        assert "speed of every row: 1 of 5 rounds" in text


def test_what_was_evaluated_is_counted_in_its_own_unit():
    report = encoder()
    report["evaluation"]["tokens_scored"] = 4
    text = Page(render_html(report)).text
    assert "on 4 passages" in text
    assert not re.search(r"\b4 tokens", text)
    assert "on 16,384 tokens" in Page(render_html(generation())).text


@pytest.mark.parametrize(
    ("make", "used", "asked", "window", "told"),
    [
        (generation, 900, 4096, 512, True),
        (generation, 4096, 4096, 512, False),
        (encoder, 4000, 4096, 100, False),  # forty whole windows: there is no room for another
        (encoder, 3900, 4096, 100, True),
        (encoder, 70, 100, 128, True),
    ],
)
def test_a_text_that_is_shorter_than_asked_for_is_told(make, used, asked, window, told):
    report = make()
    report["evaluation"] |= {"tokens": used, "window": window, "stride": window}
    report["job"] = {"eval_tokens": asked}
    for text in all_forms(report):
        assert (f"the text has {used:,} tokens to measure on, and {asked:,} were asked for" in text) is told
