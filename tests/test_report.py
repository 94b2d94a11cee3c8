"""The report in all its forms, from a report.json as a run would write it, and from one that means harm."""

from __future__ import annotations

import copy
import io
import json
import math
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from exporter.bench import charts, table
from exporter.bench.report import print_table, render_html, render_junit, render_markdown
from exporter.pipeline import write_report
from exporter.types import FEATURES, GENERATION, Gate, Result, Status

HOSTILE = "a|b`c*d_ <script>alert(1)</script> {{7*7}} {% raw %} \"q\" 'p' \x00\x1b[31m\x07\ud800 @everyone </title> ]]>"
VOID = {"meta", "br", "wbr", "hr", "img", "input", "link"}


def row(
    target: str, precision: str, mb: float, ratio: float, se: float, kl: float, top1: float, speed: float
) -> dict[str, Any]:
    gates = [
        Gate(
            "max_ppl_ratio", 1.05, ratio, ratio + 2 * se <= 1.05, "" if ratio + 2 * se <= 1.05 else "beyond the limit"
        ),
        Gate("max_kl", 0.05, kl, kl <= 0.05),
        Gate("min_top1", 0.9, top1, top1 >= 0.9),
        Gate("max_size_ratio", 1.01, mb / 538.1, mb / 538.1 <= 1.01),
    ]
    return Result(
        target,
        precision,
        path=f"{target}-{precision}",
        bytes=int(mb * 1e6),
        size_ratio=mb / 538.1,
        tokenizer_bytes=2_100_000,
        ppl=18.31 * ratio,
        ppl_ratio=ratio,
        ppl_ratio_se=se,
        kl=kl,
        kl_se=kl / 20,
        top1=top1,
        top1_se=0.002,
        logit_error=kl * 30,
        prefill_tokens_per_s=speed * 9.3,
        decode_tokens_per_s=speed,
        latency_ms={
            "prefill": {"p50": 2e4 / speed, "p90": 2.1e4 / speed, "p99": 2.6e4 / speed},
            "decode": {"p50": 1e3 / speed, "p90": 1.1e3 / speed, "p99": None},
        },
        peak_rss_bytes=int(mb * 1.4e6 + 2.2e8),
        export_s=12.5,
        engine="onnxruntime 1.31 CPUExecutionProvider",
        gates=[] if (target, precision) == ("torch", "fp32") else gates,
    ).to_json()


def unbuilt(target: str, precision: str, status: Status, reason: str) -> dict[str, Any]:
    return Result(target, precision, status, reason).to_json()


SKIPPED = "coremltools runs its models on macOS only; on a Mac: pip install 'exporter[coreml]' and exporter bench out/"
ROWS = [
    row("torch", "fp32", 538.1, 1.0, 0.0, 0.0, 1.0, 14.2),
    row("onnx", "fp32", 539.6, 1.0, 0.00001, 2.1e-7, 0.99995, 22.8),
    row("onnx", "int8-weight", 164.2, 1.0124, 0.0011, 0.0041, 0.9731, 41.7),
    row("onnx", "int4-weight", 118.7, 1.0871, 0.0042, 0.0512, 0.8893, 58.9),
    row("gguf", "q8_0", 144.8, 1.0009, 0.0004, 0.0006, 0.9902, 63.1),
    row("gguf", "q4_k_m", 105.5, 1.0312, 0.0021, 0.0193, 0.9357, 88.4),
    row("litert", "int8-dynamic", 140.1, 1.0127, 0.0013, 0.0044, 0.9722, 39.5),
    unbuilt("tensorrt", "fp16", "failed", "the child process died: SIGSEGV\n" + "frame in libnvinfer.so\n" * 60),
    unbuilt("coreml", "fp16", "skipped", SKIPPED),
]


def generation(rows: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "name": "smollm2-135m-support-lora",
        "exporter_version": "0.1.0",
        "created": "2026-11-21T22:00:00+00:00",
        "model": {
            "source": "/home/ada/models/smollm2-135m-support-lora",
            "sha256": "9f2c4d" * 10 + "abcd",
            "task": GENERATION,
            "parameters": 134_515_008,
            "history": ["merged adapter support-v3 (rank 16, 30 layers)", "pruned 0 heads"],
            "notes": ["its weights lie on a 4-bit grid: 4-bit formats keep more of it than of a usual model"],
        },
        "evaluation": {
            "text": "wikitext-2 test",
            "tokens_scored": 16_384,
            "window": 512,
            "stride": 256,
            "reference_ppl": 18.3104,
            "reference_ppl_se": 0.2211,
            "reference": "torch:fp32",
            "kl": "top-256 plus rest: a lower bound",
        },
        "machine": {
            "cpu": "AMD EPYC 9R14",
            "cores": 8,
            "threads": 4,
            "memory_bytes": 33_285_996_544,
            "load_average": [0.42, 0.61, 0.58],
            "gpu": None,
            "os": "Debian GNU/Linux 12",
            "python": "3.12.8",
            "versions": {"torch": "2.11.0", "transformers": "5.2.0", "onnxruntime": "1.31.0"},
        },
        "results": copy.deepcopy(ROWS if rows is None else rows),
        "passed": False,
        "exit_status": 4,
    }


def encoder() -> dict[str, Any]:
    report = generation(ROWS[:4])
    report["name"], report["model"]["task"] = "all-minilm-l6-v2", FEATURES
    report["evaluation"].update(reference_ppl=None, reference_ppl_se=None, kl=None, window=None, stride=None)
    for index, result in enumerate(report["results"]):
        for key in ("ppl", "ppl_ratio", "ppl_ratio_se", "kl", "kl_se", "top1", "top1_se", "decode_tokens_per_s"):
            result[key] = None
        result["cosine"], result["cosine_se"] = 1 - 0.0031 * index**2, 0.0002 * index
        result["latency_ms"]["decode"] = None
        result["gates"] = [vars(Gate("min_cosine", 0.98, result["cosine"], result["cosine"] > 0.98))]
    return report


def hostile() -> dict[str, Any]:
    report = generation(ROWS[:3])
    report["name"] = HOSTILE
    report["model"].update(source=HOSTILE, history=[HOSTILE], notes=[HOSTILE], sha256=None, parameters=None)
    report["evaluation"]["text"] = HOSTILE
    report["machine"]["versions"] = {HOSTILE: HOSTILE}
    report["results"][1].update(target=HOSTILE, engine=HOSTILE, path=HOSTILE, reason=HOSTILE)
    report["results"][2]["gates"][0].update(name=HOSTILE, passed=False, detail=HOSTILE)
    report["results"].append(unbuilt(HOSTILE, "fp32", "failed", HOSTILE + "x" * 5000))
    report["results"].append(unbuilt("x" * 80, "fp32", "skipped", HOSTILE))
    return report


def nothing() -> dict[str, Any]:
    """Every number that may be null is null."""
    report = generation([Result("torch", "fp32").to_json(), Result("onnx", "fp32", reason="timed out").to_json()])
    for section in ("evaluation", "machine"):
        report[section] = dict.fromkeys(report[section])
    report["model"].update(sha256=None, parameters=None, history=[], notes=[])
    return report


REPORTS = {"generation": generation, "encoder": encoder, "hostile": hostile, "nothing": nothing}


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
    assert page.tags.count("svg") == 2 * 2 + 4  # two plots, wide and narrow, and the legend's marks
    labels = [value for tag, key, value in page.attributes if (tag, key) == ("svg", "aria-label")]
    assert len(labels) == 4
    assert "gguf:q4_k_m (passed): 1.031 at 105.5 MB" in str(labels[0])
    assert all(key != "scope" or value in {"row", "col"} for tag, key, value in page.attributes if tag == "th")


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
    report["results"][0]["kl"] = math.nan
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(report, tmp_path)
    assert not list(tmp_path.iterdir())


def test_hostile_report_is_written(tmp_path: Path) -> None:
    write_report(hostile(), tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["name"] == HOSTILE


def test_a_number_never_looks_better_than_it_is() -> None:
    gate = {"name": "max_kl", "limit": 0.05, "value": 0.0500000001, "passed": False}
    assert (table.gate_value(gate), table.gate_limit(gate)) == ("0.0500000001", "≤ 0.05")
    almost = Result("onnx", "fp32", top1=0.999999, cosine=0.9999999, ppl_ratio=1234.5, ppl_ratio_se=7.0).to_json()
    cells = [column.cell(almost) for column in table.columns(generation([almost]))]
    assert cells == ["1,234.5 ± 7", "99.99%"]
    assert [column.cell(almost) for column in table.detail_columns(generation([almost]))] == ["0.99999"]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.9, 1.0871), (0, 538.1), (1, 1.01), (0, 3e-6), (0, 123456)])
def test_linear_ticks_are_nice(low: float, high: float) -> None:
    axis = charts.linear(low, high, 5)
    assert axis.low <= low
    assert axis.high >= high
    assert 3 <= len(axis.ticks) <= 8
    assert len({axis.label(tick) for tick in axis.ticks}) == len(axis.ticks)


@pytest.mark.parametrize(("low", "high"), [(1, 4), (0.98, 55), (1, 1e4), (1, 3e30)])
def test_logarithmic_ticks_are_few(low: float, high: float) -> None:
    axis = charts.logarithmic(low, high, 5)
    assert axis.low <= low
    assert axis.high >= high
    assert 2 <= len(axis.ticks) <= 7


def test_labels_do_not_collide() -> None:
    points = [charts.Point(f"target{i}:precision", i, 1, 0, "passed", "") for i in range(12)]
    spots = [(100.0 + 9 * i, 150.0 + 3 * i) for i in range(12)]
    boxes = [box for box in charts.labels(points, spots, (40, 30, 500, 300)) if box]
    assert len(boxes) >= 6
    for index, a in enumerate(boxes):
        assert not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in boxes[:index])


@pytest.mark.browser
@pytest.mark.parametrize("kind", REPORTS)
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_in_a_browser(kind: str, width: int, scheme: str, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI must have chromium: apt-get install chromium")
        pytest.skip("chromium is not installed: apt-get install chromium")
    # Chromium's own window cannot be narrower than 500 px, so a frame of the wanted width holds the page, and a script
    # in the copy (which the page's own policy would stop) tells what it measured.
    probe = """<script>
      addEventListener("load", () => parent.postMessage(JSON.stringify({
        scroll: document.documentElement.scrollWidth, inner: innerWidth,
        dark: matchMedia("(prefers-color-scheme: dark)").matches, alerts: window.alerts || 0,
        background: getComputedStyle(document.body).backgroundColor}), "*"));
      window.alert = () => { window.alerts = 1 };
    </script>"""
    html = render_html(REPORTS[kind]())
    page = re.sub(r"<meta http-equiv=[^>]*>", lambda _: probe, html, count=1)
    assert page != html
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    (tmp_path / "frame.html").write_text(
        f"""<!doctype html><meta name="color-scheme" content="light dark">
        <iframe src="page.html" width="{width}" height="900" style="border:0"></iframe>
        <iframe src="report.html" title="as it is, with its own policy"></iframe>
        <script>addEventListener("message", e => document.title = e.data)</script>"""
    )
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --hide-scrollbars --enable-logging=stderr"
    if scheme == "dark":
        flags += " --blink-settings=preferredColorScheme=0"
    flags += f" --user-data-dir={tmp_path / 'profile'} --window-size=1400,1000 --virtual-time-budget=3000 --dump-dom"
    done = subprocess.run(
        [chromium, *flags.split(), (tmp_path / "frame.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    found = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert found, done.stdout[-2000:]
    measured = json.loads(found[1])
    assert measured["inner"] == width
    assert measured["scroll"] <= width
    assert measured["alerts"] == 0
    assert measured["dark"] == (scheme == "dark")
    assert measured["background"] == ("rgb(14, 18, 23)" if scheme == "dark" else "rgb(255, 255, 255)")
