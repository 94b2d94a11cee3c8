"""report.json and its forms: a page, a comment for a pull request, test cases for CI. The terminal's is terminal.py.

The report is a plain dict and the one source: whatever is shown can be made again from report.json alone. Text that
comes from a model's files is data: it is escaped in every form, and characters that XML forbids are dropped.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from exporter.report import charts, table, timing, winners
from exporter.report.built import build_lines
from exporter.report.columns import columns as columns_of
from exporter.report.columns import detail_columns
from exporter.report.devices import device_lines
from exporter.report.forms import perplexity_line
from exporter.report.generation import generation_lines
from exporter.report.labelled import data_line, labelled_lines
from exporter.report.merged import merge_lines
from exporter.report.pruned import NOTHING_BESIDE, prune_lines
from exporter.report.quantized import quantization_lines
from exporter.report.samples import samples_lines, side_by_side
from exporter.report.training import trained
from exporter.report.zeros import zeros_lines

Report = Mapping[str, Any]
_TOLD = ("data", "perplexity")  # of the evaluation, in words of their own
_REASON = 300  # characters of a reason in the short forms: GitHub refuses a comment of more than 65,536


def render_json(report: Report) -> str:
    """Raises ValueError for a NaN or an infinity, which JSON does not have."""
    return json.dumps(report, indent=2, allow_nan=False) + "\n"


def render_html(report: Report) -> str:
    """One page that needs nothing else: no network, no script, and it reads on a phone and in the dark."""
    import jinja2

    report = table.clean(report)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8"))
    return template.render(
        report=report,
        rows=[(row, table.verdict(report, row)) for row in report["results"]],
        columns=columns_of(report),
        details=detail_columns(report),
        reference=winners.reference(report),
        winners=list(winners.told(report)),
        nothing_passed=winners.nothing_passed(report),
        plots=_plots(report),
        generates=table.generates(report),
        summary=table.summary(report),
        name=table.name,
        speed_notes=timing.notes(report),
        scored=table.scored(report),
        short_text=table.short_text(report),
        others=timing.most_busy(report),
        merge=[] if report["model"]["merge"] is None else list(merge_lines(report["model"]["merge"])),
        policies={table.name(row): lines for row, lines in _told(report, _policy_lines)},
        zeros={table.name(row): lines for row, lines in _told(report, zeros_lines)},
        builds={table.name(row): lines for row, lines in _told(report, build_lines)},
        devices={table.name(row): lines for row, lines in _told(report, device_lines)},
        labels={table.name(row): lines for row, lines in _told(report, labelled_lines)},
        generation={
            table.name(row): lines
            for row, lines in _told(report, partial(generation_lines, report["evaluation"]["reference"]))
        },
        forms=perplexity_line(report["evaluation"]),
        samples=list(side_by_side(report)),
        sampled=list(samples_lines(report)),
        data=data_line(report["evaluation"]["data"]) if report["evaluation"].get("data") else None,
        prune=_prune_lines(report),
        trained=trained(report["model"]),
        clip=table.clip,
        failure=table.failure,
        gate_limit=table.gate_limit,
        gate_value=table.gate_value,
    )


# Figures that plots are drawn of, with what they are called there and what the reference has of itself.
_QUALITY = {"ppl_ratio": ("Perplexity ratio", 1.0), "cosine": ("1 − cosine", 0.0), "kl": ("KL, nats", 0.0)}


def _plots(report: Report) -> list[dict[str, str]]:
    """Quality against size and against speed, each drawn twice: for a wide page and for a phone."""
    quality, baseline = _QUALITY[_judged_by(report)]
    y_title = f"{quality}, ± 2 se · lower is better"
    speed, speed_title = "latency", "Latency p50, ms · lower is better"
    if table.generates(report):
        speed, speed_title = "decode speed", "Decode, tokens/s · higher is better"
    plots = []
    for what, x_title in (("size", "Size, MB · lower is better"), (speed, speed_title)):
        title, points = f"{quality} against {what}", _points(report, what)
        if len(points) > 1:
            drawn = {
                css: charts.scatter(
                    points, title=title, x_title=x_title, y_title=y_title, baseline=baseline, width=width, height=height
                )
                for css, width, height in (("wide", 520, 340), ("narrow", 330, 300))
            }
            plots.append({"title": title, **drawn})
    return plots


def _judged_by(report: Report) -> str:
    """The figure that tells most of this task: its name in a row's quality."""
    had = (name for name in _QUALITY if any(table.value(row, name) is not None for row in report["results"]))
    return next(had, "kl")


def _points(report: Report, what: str) -> list[charts.Point]:
    name, points = _judged_by(report), []
    for row in report["results"]:
        x = {
            "size": None if (size := row["artifact"]["bytes"]) is None else size / 1e6,
            "decode speed": row["speed"]["decode_tokens_per_s"],
            "latency": table.latency(row, table.one_forward(row), "p50"),
        }[what]
        y, error = table.value(row, name), table.error(row, name)
        if name == "cosine" and y is not None:
            y = max(0.0, 1 - y)
        if x is None or y is None:
            continue
        verdict = table.verdict(report, row)
        kind = "reference" if verdict == "reference" else "failed" if verdict.endswith("failed") else "passed"
        tip = f"{table.name(row)} ({verdict}): {y:.4g} at {x:,.4g} {'MB' if what == 'size' else what}"
        points.append(charts.Point(table.clip(table.name(row), 26), x, y, 2 * (error or 0), kind, tip))
    return points


def render_markdown(report: Report) -> str:
    """A comment for a pull request, in GitHub's Markdown."""
    report = table.clean(report)
    columns = columns_of(report)
    heads = ["Target", "Verdict", *(f"{column.title} {column.unit}" for column in columns), "Gates"]
    lines = [
        f"### exporter: {_code(report['name'])} {'passed ✅' if report['passed'] else 'failed ❌'}",
        "",
        f"{table.summary(report)}.",
        "",
        *((f"On {table.scored(report)}: {_text(short)}.", "") if (short := table.short_text(report)) else ()),
        f"| {' | '.join(heads)} |",
        f"|---|---|{'---:|' * (len(columns) + 1)}",
    ]
    for row in report["results"]:
        cells = [column.shown(report, row) or "–" for column in columns]
        kept = sum(gate["passed"] for gate in row["gates"])
        gates = f"{kept}/{len(row['gates'])}" if row["gates"] else "–"
        lines.append(f"| {' | '.join([_code(table.name(row)), table.verdict(report, row), *cells, gates])} |")
    lines += _markdown_winners(report)
    failed = [
        f"- {_code(table.name(row))} {_text(table.failure(gate))}"
        for row in report["results"]
        for gate in row["gates"]
        if not gate["passed"]
    ]
    if failed:
        lines += ["", "**Failed gates**", "", *failed]
    if report["model"]["merge"] is not None:
        lines += ["", "**Merge**", "", *(f"- {_text(line)}" for line in merge_lines(report["model"]["merge"]))]
    if pruned := _prune_lines(report):
        lines += ["", "**Pruning**", "", *(f"- {_text(line)}" for line in pruned)]
    for one in trained(report["model"]):
        lines += ["", f"**{one['title']}**", "", *(f"- {_text(line)}" for line in one["lines"])]
    generates = partial(generation_lines, report["evaluation"]["reference"])
    told = (
        ("Labels", labelled_lines), ("Generation", generates), ("Policy", _policy_lines),
        ("Zeros", zeros_lines), ("Engine", build_lines), ("Device", device_lines),
    )  # fmt: skip
    for title, about in told:
        for row, said in _told(report, about):
            lines += ["", f"**{title} of {_code(table.name(row))}**", "", *(f"- {_text(line)}" for line in said)]
    if sampled := list(samples_lines(report)):
        lines += ["", "**Samples**", "", *(f"- {_text(line)}" for line in sampled)]
    for status, title in (("failed", "Failed"), ("skipped", "Skipped"), ("ok", "Notes")):
        rows = [row for row in report["results"] if row["status"] == status and row["reason"]]
        if rows:
            lines += ["", f"**{title}**", ""]
            lines += [f"- {_code(table.name(row))}: {_text(row['reason'])}" for row in rows]
    if notes := timing.notes(report):
        lines += ["", "**Speed**", "", *(f"- {_text(note)}" for note in notes)]
    return "\n".join([*lines, *_markdown_details(report)]) + "\n"


def _markdown_winners(report: Report) -> list[str]:
    """Which artifact to take. The line that runs it is whole, and nothing in it but what a reader would copy."""
    lines = []
    for one in winners.told(report):
        lines.append(f"- {one.title}: {_code(one.variant)}, {_text('; '.join(one.facts))}; folder {_code(one.folder)}")
        lines += [f"  <pre>{_entities(' '.join(one.run.splitlines()))}</pre>"] if one.run else []
    lines += filter(None, [winners.nothing_passed(report)])
    return ["", "**Which to take**", "", *lines] if lines else []


def _told(report: Report, about: Callable[[table.Row], Iterable[str]]) -> list[tuple[table.Row, list[str]]]:
    """The rows that something is told about, and what: of their policies, or of engines."""
    told = ((row, list(about(row))) for row in report["results"])
    return [(row, lines) for row, lines in told if lines]


def _prune_lines(report: Report) -> list[str]:
    record = report["model"]["prune"]
    return [] if record is None else [*prune_lines(record), NOTHING_BESIDE]


def _policy_lines(row: table.Row) -> Iterable[str]:
    record = row["build"]["quantization"]
    return () if record is None else quantization_lines(record)


def _markdown_details(report: Report) -> list[str]:
    machine = report["machine"]
    plain = {
        **{f"model {key}": value for key, value in report["model"].items() if not isinstance(value, list | dict)},
        **{f"evaluation {key}": value for key, value in report["evaluation"].items() if key not in _TOLD},
        "evaluation perplexity": perplexity_line(report["evaluation"]),
        "labelled data": data_line(report["evaluation"]["data"]) if report["evaluation"].get("data") else None,
        **{key: value for key, value in machine.items() if not isinstance(value, dict | list)},
        "load average": ", ".join(str(load) for load in machine["load_average"] or ()) or None,
        **(machine["versions"] or {}),
        "exporter": report["exporter_version"],
    }
    rows = [f"| {_text(key)} | {_text(str(value))} |" for key, value in plain.items() if value is not None]
    head = ["", "<details><summary>Model, evaluation, machine and versions</summary>", "", "| | |", "|---|---|"]
    return [*head, *rows, "", "</details>"]


def _text(value: str) -> str:
    """User text on one line of Markdown: nothing in it is markup, ends a table cell or mentions a person."""
    text = re.sub(r"[&<>|]", lambda match: f"&#{ord(match[0])};", table.clip(value, _REASON))
    return re.sub(r"[\\`*_\[\]~]", r"\\\g<0>", text).replace("@", "@&#8203;")


def _entities(value: str) -> str:
    """Text inside HTML's own tags, where Markdown is no markup."""
    return re.sub(r"[&<>|@]", lambda match: f"&#{ord(match[0])};", value)


def _code(value: str) -> str:
    """User text as code; backquotes where they suffice, for they read well in the source too."""
    text = table.clip(value, _REASON)
    return f"`{text}`" if re.fullmatch(r"[\w.:/+@=, -]+", text) else f"<code>{_text(text)}</code>"


def render_junit(report: Report) -> str:
    """A test case for every gate, in the JUnit XML that GitHub, GitLab and Jenkins read: a suite for each row."""
    report = table.clean(report)
    root = ET.Element("testsuites", name=f"exporter {report['name']}")
    for row in report["results"]:
        suite = ET.SubElement(root, "testsuite", name=table.name(row), timestamp=report["created"])
        for gate in row["gates"]:
            case = _case(suite, row, f"{gate['name']} {table.gate_limit(gate)}")
            if not gate["passed"]:
                ET.SubElement(case, "failure", message=table.failure(gate), type="gate").text = table.failure(gate)
        reason = row["reason"] or "no reason was given"
        if row["status"] == "skipped":
            ET.SubElement(_case(suite, row, "export"), "skipped", message=table.clip(reason, _REASON)).text = reason
        elif row["status"] == "failed" and all(gate["passed"] for gate in row["gates"]):
            error = ET.SubElement(
                _case(suite, row, "export"), "error", message=table.clip(reason, _REASON), type="export"
            )
            error.text = reason
        elif not row["gates"]:
            _case(suite, row, "measured")
        suite.set("time", f"{row['build']['export_s'] or 0:.3f}")
        _count(suite, [suite])
    _count(root, list(root))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _case(suite: ET.Element, row: Mapping[str, Any], name: str) -> ET.Element:
    # Some readers want a time in every case; what takes time is the export, and its suite has that.
    return ET.SubElement(suite, "testcase", classname=table.name(row), name=name, time="0")


def _count(element: ET.Element, suites: list[ET.Element]) -> None:
    for attribute, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        element.set(attribute, str(sum(1 for suite in suites for _ in suite.iter(tag))))


FORMS: Mapping[str, Callable[[Report], str]] = {
    "report.json": render_json,
    "report.html": render_html,
    "report.md": render_markdown,
    "junit.xml": render_junit,
}
