"""make bench, policies: what they cost and gain on real models; on the tiny one the ways to 4 bits side by side.

    python -m bench.policy --text wiki.test.raw            measures, and writes the README's tables
    python -m bench.policy --text FILE --keep-readme       print only

The first tokens of the text are measured on, its second half is calibrated on: other articles of the same kind. Run it
on an idle machine.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from bench.quality import (
    DECODER,
    ENCODER,
    OUT,
    ROOT,
    heading,
    markdown,
    measure,
    number,
    second_half,
    with_error,
    write_section,
)
from exporter.machine import cpu_name

BEGIN, END = "<!-- policy bench: begin -->", "<!-- policy bench: end -->"
CALIBRATED = 32768  # tokens
JOBS: dict[str, dict[str, dict[str, Any]]] = {
    DECODER: {
        "onnx:fp32": {},
        "onnx:int8-static": {"max_ppl_ratio": 1.02},
        "torch:int8-static": {"max_ppl_ratio": 1.02},
        "onnx:int4-weight": {"max_ppl_ratio": 1.08},
    },
    ENCODER: {"onnx:fp32": {}, "onnx:int8-dynamic": {}, "onnx:int8-static": {}, "torch:int8-static": {}},
}
FOUR_BITS = """
modules:
  "*": {weight: int4, group: 32, symmetric: false}
  lm_head: {weight: int8, group: 32}
"""
ROUNDINGS = {"nearest": "RTN", "gptq": "GPTQ", "awq": "AWQ"}
QAT = "steps=200,scheme=int4-weight"


def rows(model: str, text: Path, calibration: Path, again: bool) -> list[str]:
    """The model's table: one job for each limit, so that every mix is chosen for its own gate."""
    table = []
    for target, options in JOBS[model].items():
        calibrated = {"calib_text": calibration, "calib_tokens": CALIBRATED} if options or "static" in target else {}
        report = measure(
            model, text, (target,), f"policy-{model}-{target.replace(':', '-')}", again=again, **options, **calibrated
        )
        row = report["results"][-1]
        decoder = row["ppl_ratio"] is not None
        share = re.search(r"([\d.]+%) of the linear layers' multiplications", row["reason"] or "")
        record = row["quantization"]
        cells = [
            target,
            number(row["size_ratio"], ".3f"),
            with_error(row["ppl_ratio"], row["ppl_ratio_se"], ".4f") if decoder else number(row["cosine"], ".4f"),
            number(row["kl"], ".4f") if decoder else "",
            share[1] if share else "",
            number(row["prefill_tokens_per_s"], ",.0f"),
            number(row["latency_ms"]["prefill_128"]["p50"], ".1f"),
            number(row["latency_ms"]["prefill"]["p50"], ".1f"),
            "" if record is None else f"{record['seconds']:,.0f}",
            "passed" if row["gates"] and all(gate["passed"] for gate in row["gates"]) else "failed",
        ]
        table.append(cells)
    quality = ["ppl ratio ± se", "KL"] if decoder else ["cosine", ""]
    names = ["target", "× fp32", *quality, "in integer kernels", "prefill, tok/s", "ms at 128", "ms at 512"]
    names += ["policy, s", "gates"]
    return [f"{heading(report)}:", "", *markdown(names, table), ""]


def four_bits(scratch: Path, again: bool) -> list[str]:
    """RTN, GPTQ, AWQ and QAT of one policy, on the model that exporter ships: int4 in groups of 32, the head int8."""
    scratch.mkdir(parents=True, exist_ok=True)
    policy = scratch / "four-bits.yaml"
    policy.write_text(FOUR_BITS)
    jobs: dict[str, dict[str, Any]] = {name: {"rounding": method} for method, name in ROUNDINGS.items()}
    jobs["QAT"] = {"qat": QAT}
    lines = [
        "| tiny, int4 in groups of 32 | ppl ratio ± se | KL ± se | of RTN's KL | time, s |",
        "|---|---:|---:|---:|---:|",
    ]
    first = None
    for name, options in jobs.items():
        given = {} if "qat" in options else {"policy": policy}
        report = measure(
            "tiny", TINY_TEXT, ("onnx:int4-weight",), f"four-bits-{name}", again=again, speed=False, **given, **options
        )
        row = report["results"][-1]
        seconds = row["quantization"]["seconds"]
        if "qat" in options:
            seconds += report["model"]["qat"]["seconds"]
        first = first or row["kl"]
        lines.append(
            f"| {name} | {row['ppl_ratio']:.4f} ± {row['ppl_ratio_se']:.4f} | {row['kl']:.5f} ± {row['kl_se']:.5f} "
            f"| {row['kl'] / first:.2f} | {seconds:,.0f} |"
        )
    return lines


TINY_TEXT = ROOT / "models" / "tiny" / "eval.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--keep-readme", action="store_true")
    parser.add_argument("--only", choices=(DECODER, ENCODER, "tiny"), help="one of the tables; implies --keep-readme")
    parser.add_argument("--again", action="store_true", help="measure what is in out/bench again; build what is not")
    arguments = parser.parse_args()
    calibration = second_half(arguments.text)
    lines: list[str] = []
    for model in JOBS:
        if arguments.only in (None, model):
            lines += rows(model, arguments.text, calibration, arguments.again)
    if arguments.only in (None, "tiny"):
        lines += four_bits(OUT, arguments.again)
    calibrated = f"Calibrated on {CALIBRATED:,} tokens of the text's second half; the tiny model on its own text."
    text = "\n".join([*lines, "", f"- {cpu_name()}, 2 cores. {calibrated}"])
    print(text)
    if not arguments.keep_readme and not arguments.only:
        write_section(BEGIN, END, text)


if __name__ == "__main__":
    main()
