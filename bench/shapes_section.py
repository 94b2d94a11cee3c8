"""The text of bench/results/shapes.json: exports beside other exporters, and int8 artifacts, of random models."""

from __future__ import annotations

from bench.cells import Result, markdown, megabytes, number
from bench.rows import figure, variant

NAMES = {"exporter": "exporter, proven", "transformers": "transformers.exporters", "optimum": "optimum-onnx"}


def shapes(result: Result) -> str:
    lines: list[str] = []
    exports, machine = result["figures"]["exports"], result["machine"]
    rows, missing = [], []
    for shape, parts in exports.items():
        for part, told in parts.items():
            if "not_measured" in told:
                missing.append(f"- Not measured: {shape} by {NAMES[part]} ({told['not_measured']}).")
                continue
            cells = [shape, NAMES[part], told["transformers"], number(told["s"], ".1f")]
            rows.append([*cells, *(megabytes(told[name], ",.0f") for name in ("peak_rss_bytes", "bytes"))])
    names = ["shape", "exported to float32 by", "transformers", "s", "peak RSS, MB", "files, MB"]
    lines += [*markdown(names, rows), "", *missing, *([""] if missing else [])]
    rows = []
    for report in result["reports"]:
        pictures = report["model"]["task"] == "image-classification"
        for row in report["results"]:
            cells = [report["label"], variant(row), megabytes(figure(row, "artifact.bytes"))]
            cells.append(number(figure(row, "artifact.size_ratio"), ".3f"))
            if pictures:
                times = [figure(row, f"speed.latency_ms.{name}.p50") for name in ("picture", "pictures_8")]
                cells += [number(times[0], ".1f"), number(times[1], ".1f"), "", ""]
            else:
                rates = [figure(row, f"speed.{name}_tokens_per_s") for name in ("prefill", "decode")]
                cells += ["", "", number(rates[0], ",.0f"), number(rates[1], ".1f")]
            rows.append(cells)
    names = ["shape", "target", "size, MB", "× fp32", "ms a picture", "ms of eight"]
    lines += [*markdown([*names, "source, tok/s", "decode, tok/s"], rows), ""]
    versions = result["versions"]
    lines.append(
        f"- {machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads; torch {versions['torch']}, "
        f"transformers {versions['transformers']}, onnxruntime {versions['onnxruntime']}. The weights are random."
    )
    return "\n".join(lines)
