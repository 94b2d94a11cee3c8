"""make bench ONLY=policy: what policies cost and gain on real models; on the tiny one the ways to 4 bits side by side.

    python -m bench.policy --text wiki.test.raw

The first tokens of the text are measured on, its second half is calibrated on: other articles of the same kind. Run it
on an idle machine. What the cache keeps to choose policies from is removed, so that each job finds it anew.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bench import record
from bench.jobs import CALIBRATED, DECODER, ENCODER, OUT, THREADS, measure, options, second_half
from bench.rows import figure, variant
from exporter.cache import CALIBRATIONS, PREPARATIONS, RANKINGS
from exporter.cleaning import Asked, clean, look

JOBS: dict[str, dict[str, dict[str, Any]]] = {
    DECODER: {
        "onnx:fp32": {},
        "onnx:int8-weight": {},
        "onnx:int8-static": {"max_ppl_ratio": 1.02},
        "torch:int8-static": {"max_ppl_ratio": 1.02},
        "onnx:int4-weight": {"max_ppl_ratio": 1.04},
    },
    ENCODER: {"onnx:fp32": {}, "onnx:int8-dynamic": {}, "onnx:int8-static": {}, "torch:int8-static": {}},
}
FOUR_BITS = """
modules:
  "*": {weight: int4, group: 32, symmetric: false}
  lm_head: {weight: int8, group: 32}
"""
ROUNDINGS = {"nearest": "RTN", "gptq": "GPTQ", "awq": "AWQ"}
QAT = {"steps": 200, "scheme": "int4-weight"}
TINY_TEXT = record.ROOT / "models" / "tiny" / "eval.txt"


def forget() -> None:
    """Removes what the jobs before kept in the cache to choose policies from: the seconds are of finding it."""
    clean(look((CALIBRATIONS, PREPARATIONS, RANKINGS)), Asked(everything=True))


def policies(model: str, text: Path, calibration: Path, again: bool) -> list[dict[str, Any]]:
    """The model's reports: one job for each limit, so that every mix is chosen for its own gate."""
    reports = []
    for target, given in JOBS[model].items():
        calibrated = {"calib_text": calibration, "calib_tokens": CALIBRATED} if given or "static" in target else {}
        folder = f"policy-{model}-{target.replace(':', '-')}"
        label = f"{model} to {target}"
        forget()
        reports.append(measure(model, text, (target,), folder, label, again=again, **given, **calibrated))
    return reports


def integer_kernels(reports: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Of each model and variant, which share runs in integer kernels: a target says it in the words of its row."""
    shares: dict[str, dict[str, str]] = {}
    for report in reports:
        row = report["results"][-1]
        said = re.search(r"([\d.]+%) of the linear layers' multiplications", row["reason"] or "")
        if said:
            shares.setdefault(report["name"], {})[variant(row)] = said[1]
    return shares


def four_bits(again: bool) -> list[dict[str, Any]]:
    """RTN, GPTQ, AWQ and QAT of one policy, on the model that exporter ships: int4 in groups of 32, the head int8."""
    OUT.mkdir(parents=True, exist_ok=True)
    policy = OUT / "four-bits.yaml"
    policy.write_text(FOUR_BITS)
    jobs: dict[str, dict[str, Any]] = {
        name: {"rounding": method, "policy": policy} for method, name in ROUNDINGS.items()
    }
    jobs["QAT"] = {"qat": QAT}
    reports = []
    for name, given in jobs.items():
        forget()
        told = (f"four-bits-{name}", name)
        reports.append(measure("tiny", TINY_TEXT, ("onnx:int4-weight",), *told, again=again, speed=False, **given))
    return reports


def seconds(report: dict[str, Any]) -> float:
    """What the rounding took; QAT's training is a stage of its own, before it."""
    return float(figure(report["results"][-1], "build.quantization.seconds")) + float(
        figure(report, "model.qat.seconds") or 0
    )


def main() -> None:
    arguments = options(__doc__).parse_args()
    about = record.begin("policy", THREADS)
    calibration = second_half(arguments.text)
    reports = [one for model in JOBS for one in policies(model, arguments.text, calibration, arguments.again)]
    tiny = four_bits(arguments.again)
    figures = {
        "calibrated_tokens": CALIBRATED,
        "integer_kernels": integer_kernels(reports),
        "four_bits_s": {report["label"]: seconds(report) for report in tiny},
    }
    record.write(about, [*reports, *tiny], figures)


if __name__ == "__main__":
    main()
