"""make bench ONLY=tensorrt: engines that TensorRT-RTX builds of real models without a GPU, and their graphs' proof.

    python -m bench.tensorrt --text wiki.test.raw

Each row is a job of its own, so that its seconds and its peak of memory have every step in them: in one job the float
graph is made once for all. It is calibrated on the text's second half, and nothing is timed but the export. Run it on
an idle machine.
"""

from __future__ import annotations

import sys
from typing import Any

from bench import record
from bench.jobs import CALIBRATED, DECODER, ENCODER, THREADS, measure, options, second_half
from bench.rows import figure, variant
from exporter.targets.tensorrt.platform import RTX, cannot_run

PRECISIONS: dict[str, dict[str, dict[str, Any]]] = {
    DECODER: {"fp16": {}, "int8": {"max_ppl_ratio": 1.02}, "int8-weight": {}},
    ENCODER: {"fp16": {}, "int8": {"min_cosine": 0.99}},
}


def peak_over_fp32(report: dict[str, Any]) -> float:
    """The exporting process's peak of memory over the model's float32 weights."""
    row = report["results"][-1]
    if figure(row, "build.engine") is None:
        sys.exit(f"error: {variant(row)} of {report['name']}: {row['reason']}")
    return float(figure(row, "build.export_peak_rss_bytes") / (4 * report["model"]["parameters"]))


def main() -> None:
    arguments = options(__doc__).parse_args()
    if cannot_run(RTX) is None:
        sys.exit("error: here the engine itself would be measured; this table is of machines without a GPU")
    about = record.begin("tensorrt", THREADS)
    given = {"calib_text": second_half(arguments.text), "calib_tokens": CALIBRATED, "speed": False}
    reports = []
    for model, precisions in PRECISIONS.items():
        for precision, gates in precisions.items():
            target, folder = f"{RTX.package}:{precision}", f"tensorrt-{model}-{precision}"
            label = f"{model} to {target}"
            reports.append(
                measure(model, arguments.text, (target,), folder, label, again=arguments.again, **given, **gates)
            )
    peaks = {report["label"]: peak_over_fp32(report) for report in reports}
    record.write(about, reports, {"calibrated_tokens": CALIBRATED, "export_peak_over_fp32": peaks})


if __name__ == "__main__":
    main()
