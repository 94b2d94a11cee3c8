"""make bench, TensorRT: engines that TensorRT-RTX builds of real models without a GPU, and the proof of their graphs.

    python -m bench.tensorrt --text wiki.test.raw            measures, and writes the README's table
    python -m bench.tensorrt --text FILE --keep-readme       print only

Each row is a job of its own, so that its seconds and its peak of memory have every step in them: in one job the float
graph is made once for all. It is calibrated on the text's second half, and nothing is timed but the export. Run it on
an idle machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bench.policy import CALIBRATED
from bench.quality import (
    DECODER,
    ENCODER,
    QUALITY,
    heading,
    markdown,
    measure,
    number,
    quality_cells,
    second_half,
    write_section,
)
from exporter.machine import cpu_name
from exporter.report.table import verdict
from exporter.targets.tensorrt.platform import RTX, cannot_run

BEGIN, END = "<!-- tensorrt bench: begin -->", "<!-- tensorrt bench: end -->"
PRECISIONS: dict[str, dict[str, dict[str, Any]]] = {
    DECODER: {"fp16": {}, "int8": {"max_ppl_ratio": 1.02}, "int8-weight": {}},
    ENCODER: {"fp16": {}, "int8": {"min_cosine": 0.99}},
}
STEPS = ("graph", "cast", "parse", "build")


def measured(model: str, precision: str, text: Path, calibration: Path, again: bool) -> dict[str, Any]:
    """The report of the job of one row, which is its last."""
    return measure(
        model,
        text,
        (f"{RTX.package}:{precision}",),
        f"tensorrt-{model}-{precision}",
        again=again,
        speed=False,
        calib_text=calibration,
        calib_tokens=CALIBRATED,
        **PRECISIONS[model][precision],
    )


def table(reports: list[dict[str, Any]]) -> list[str]:
    decoder = reports[0]["evaluation"]["reference_ppl"] is not None
    names = ["target", "engine, MB", "engine / ONNX", *QUALITY[decoder]]
    names += ["in int8", " / ".join(STEPS) + ", s", "export, s", "peak memory / fp32", "gates"]
    rows = []
    for report in reports:
        row = report["results"][-1]
        if (built := row["build"]) is None:
            sys.exit(f"error: {row['target']}:{row['precision']} of {report['name']}: {row['reason']}")
        cells = [
            f"{row['target']}:{row['precision']}",
            number(built["engine_bytes"] / 1e6, ",.1f"),
            number(built["engine_over_onnx"], ".3f"),
        ]
        cells += [
            *quality_cells(row, decoder),
            number(built["int8_share"], ".0%"),
            " / ".join(f"{built['seconds'][step]:.1f}" for step in STEPS),
            number(row["export_s"], ".1f"),
            number(row["export_peak_rss_bytes"] / (4 * report["model"]["parameters"]), ".2f"),
            verdict(report, row),
        ]
        rows.append(cells)
    return [f"{heading(reports[0])}:", "", *markdown(names, rows), ""]


def about(report: dict[str, Any]) -> str:
    """What the rows have in common: where the engine was built, and how far its proof goes."""
    row, cores = report["results"][-1], report["machine"]["cores"]
    return (
        f"- {cpu_name()}, {cores} cores; {row['build']['built_by']}. Quality is of the graph handed to TensorRT, "
        f"rounded as its types say, through ONNX Runtime on the CPU. No latency is measured: {row['untimed']}.\n"
        f"- Calibrated on {CALIBRATED:,} tokens of the text's second half. The rest of an export's time is the check "
        "for overflow, quantization and writing; a policy is chosen before it. Peak memory is the exporting process's, "
        "Python and its libraries included."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--keep-readme", action="store_true")
    rows = [f"{model}:{precision}" for model in PRECISIONS for precision in PRECISIONS[model]]
    parser.add_argument("--only", choices=(*PRECISIONS, *rows), help="a table or a row; implies --keep-readme")
    parser.add_argument("--again", action="store_true", help="measure what is in out/bench again; build what is not")
    arguments = parser.parse_args()
    if cannot_run(RTX) is None:
        sys.exit("error: here the engine itself would be measured; this table is of machines without a GPU")
    calibration = second_half(arguments.text)
    lines: list[str] = []
    for model, precisions in PRECISIONS.items():
        wanted = [one for one in precisions if arguments.only in (None, model, f"{model}:{one}")]
        reports = [measured(model, one, arguments.text, calibration, arguments.again) for one in wanted]
        if reports:
            lines += table(reports)
            last = about(reports[-1])
    text = "\n".join([*lines, last])
    print(text)
    if not arguments.keep_readme and not arguments.only:
        write_section(BEGIN, END, text)


if __name__ == "__main__":
    main()
