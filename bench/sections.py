"""The text of each result: tables and the lines below them, made of the result's figures and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from bench.cells import (
    QUALITY,
    Result,
    circumstances,
    heading,
    is_decoder,
    listed,
    markdown,
    megabytes,
    models_of,
    number,
    packages,
    quality_cells,
    with_error,
)
from bench.families.section import families
from bench.gpu.section import NOTHING, gpu
from bench.litert_section import litert
from bench.prune_section import prune
from bench.rows import figure, variant, verdict
from bench.shapes_section import shapes

STEPS = ("graph", "cast", "parse", "build")  # of an engine
BY_MODEL = ("quality",)  # whose text can be that of one model's reports


def quality(result: Result) -> str:
    lines: list[str] = []
    for report in result["reports"]:
        if report["label"] == "overhead":
            lines += overhead(report, result["figures"])
            continue
        decoder = is_decoder(report)
        names = ["target", "size, MB", "× fp32", *QUALITY[decoder], "prefill, tok/s"]
        names += [*(["decode, tok/s"] if decoder else ["ms at 128", "ms at 512"]), "peak RSS, MB", "gates"]
        rows = []
        for row in report["results"]:
            cells = [variant(row), megabytes(figure(row, "artifact.bytes"))]
            cells += [number(figure(row, "artifact.size_ratio"), ".3f"), *quality_cells(row, decoder)]
            cells.append(number(figure(row, "speed.prefill_tokens_per_s"), ",.0f"))
            times = (
                ["decode_tokens_per_s"] if decoder else [f"latency_ms.{at}.p50" for at in ("prefill_128", "prefill")]
            )
            cells += [number(figure(row, f"speed.{name}"), ".1f") for name in times]
            rows.append([*cells, megabytes(figure(row, "memory.peak_rss_bytes"), ",.0f"), verdict(row)])
        lines += [f"{heading(report)}, {circumstances(report)}:", "", *markdown(names, rows), ""]
    here = result["machine"]
    lines.append(f"- Machine: {here['cpu']}, {here['cores']} cores; {packages(result)}.")
    return "\n".join(lines)


def overhead(report: Result, figures: Result) -> list[str]:
    """What the pipeline adds to its parts, and what an export takes in memory."""
    rows = {variant(row): row for row in report["results"]}
    floats = figure(rows["torch:fp32"], "artifact.bytes")
    peaks = {name: figure(row, "build.export_peak_rss_bytes") for name, row in rows.items()}
    memory = ", ".join(
        f"{name} {megabytes(peak, ',.0f')} MB ({peak / floats:.2f}×)" for name, peak in peaks.items() if peak
    )
    whole, total = figures["whole_s"], figures["parts_total_s"]
    targets = " and ".join(name for name in rows if name != "torch:fp32")
    took = (
        f"- A whole run of {report['name']} to {targets} took {whole:.1f} s; its parts by hand, one process after the "
        f"other, {total:.1f} s ({listed(figures['parts_s'])}): {whole / total:.2f}×."
    )
    return [took, f"- Peak memory of its exports, and over the fp32 checkpoint's size: {memory}."]


def policy(result: Result) -> str:
    figures = result["figures"]
    four = [report for report in result["reports"] if report["label"] in figures["four_bits_s"]]
    lines: list[str] = []
    for reports in models_of([report for report in result["reports"] if report not in four]):
        decoder = is_decoder(reports[0])
        measured = ["ppl ratio ± se", "KL"] if decoder else ["cosine", ""]
        names = ["target", "× fp32", *measured, "in integer kernels", "prefill, tok/s", "ms at 128", "ms at 512"]
        shares = figures["integer_kernels"].get(reports[0]["name"], {})
        rows = [policy_cells(report["results"][-1], decoder, shares) for report in reports]
        lines += [f"{heading(reports[0])}:", "", *markdown([*names, "policy, s", "gates"], rows), ""]
    lines += four_bits(four, figures["four_bits_s"])
    here = f"{result['machine']['cpu']}, {result['machine']['cores']} cores"
    calibrated = f"Calibrated on {figures['calibrated_tokens']:,} tokens of the text's second half"
    return "\n".join([*lines, "", f"- {here}. {calibrated}; the tiny model on its own text."])


def policy_cells(row: Result, decoder: bool, shares: Mapping[str, str]) -> list[str]:
    cells = [variant(row), number(figure(row, "artifact.size_ratio"), ".3f")]
    if decoder:
        cells += [with_error(row, "ppl_ratio", ".4f"), number(figure(row, "quality.kl.value"), ".4f")]
    else:
        cells += [number(figure(row, "quality.cosine.value"), ".4f"), ""]
    cells += [shares.get(variant(row), ""), number(figure(row, "speed.prefill_tokens_per_s"), ",.0f")]
    cells += [number(figure(row, f"speed.latency_ms.{at}.p50"), ".1f") for at in ("prefill_128", "prefill")]
    return [*cells, number(figure(row, "build.quantization.seconds"), ",.0f"), verdict(row)]


def four_bits(reports: Sequence[Result], seconds: Mapping[str, float]) -> list[str]:
    """The ways to 4 bits, beside the nearest value's."""
    names = [f"{reports[0]['name']}, int4 in groups of 32", "ppl ratio ± se", "KL ± se", "of RTN's KL", "time, s"]
    first = figure(reports[0]["results"][-1], "quality.kl.value")
    rows = []
    for report in reports:
        row, label = report["results"][-1], report["label"]
        share = figure(row, "quality.kl.value") / first
        cells = [label, with_error(row, "ppl_ratio", ".4f"), with_error(row, "kl", ".5f")]
        rows.append([*cells, f"{share:.2f}", f"{seconds[label]:,.0f}"])
    return markdown(names, rows, last=False)


def gguf(result: Result) -> str:
    figures = result["figures"]
    compared, without = result["reports"]
    bare = [row for row in without["results"] if row["target"] == "gguf"]
    both = {variant(row) for row in bare}
    names = ["target", "matrix", "size, MB", "× fp32", "ppl ratio ± se", "KL", "top-1"]
    names += ["prefill, tok/s", "decode, tok/s"]
    rows = []
    for row, had in [*((row, figures["with_matrix"]) for row in compared["results"]), *((row, ()) for row in bare)]:
        matrix = "yes" if variant(row) in had else "no" if variant(row) in both else ""
        cells = [variant(row), matrix, megabytes(figure(row, "artifact.bytes"))]
        cells += [number(figure(row, "artifact.size_ratio"), ".3f"), with_error(row, "ppl_ratio", ".4f")]
        cells += [number(figure(row, "quality.kl.value"), ".6f"), number(figure(row, "quality.top1.value"), ".4f")]
        cells += [number(figure(row, "speed.prefill_tokens_per_s"), ",.0f")]
        rows.append([*cells, number(figure(row, "speed.decode_tokens_per_s"), ".1f")])
    about = compared["evaluation"]
    tokens = f"{about['tokens_scored']:,} of {compared['job']['eval_tokens']:,} tokens of {about['text']}"
    title = f"**{compared['name']}**, {tokens}, {circumstances(compared)}:"
    total, tools = figures["four_total_s"], figures["by_hand_total_s"]
    times = (
        f"- {', '.join(figures['four_s'])} of {compared['name']} took {total:.1f} s ({listed(figures['four_s'])}: the "
        "first one converts to float16, once for all); llama.cpp's converter and quantizer by hand "
        f"{tools:.1f} s ({listed(figures['by_hand_s'])}): {total / tools:.2f}×."
    )
    here = f"- {result['machine']['cpu']}; llama-cpp-python {result['versions']['llama-cpp-python']}."
    return "\n".join([title, "", *markdown(names, rows, words=2, last=False), "", times, here])


def tensorrt(result: Result) -> str:
    lines: list[str] = []
    figures = result["figures"]
    for reports in models_of(result["reports"]):
        decoder = is_decoder(reports[0])
        names = ["target", "engine, MB", "engine / ONNX", *QUALITY[decoder], "in int8", " / ".join(STEPS) + ", s"]
        rows = []
        for report in reports:
            row = report["results"][-1]
            built = figure(row, "build.engine")
            cells = [variant(row), megabytes(built["engine_bytes"]), number(built["engine_over_onnx"], ".3f")]
            cells += [*quality_cells(row, decoder), number(built["int8_share"], ".0%")]
            cells += [" / ".join(f"{built['seconds'][step]:.1f}" for step in STEPS)]
            cells += [number(figure(row, "build.export_s"), ".1f")]
            rows.append([*cells, f"{figures['export_peak_over_fp32'][report['label']]:.2f}", verdict(row)])
        names += ["export, s", "peak memory / fp32", "gates"]
        lines += [f"{heading(reports[0])}:", "", *markdown(names, rows), ""]
    row, here = result["reports"][-1]["results"][-1], result["machine"]
    proof = (
        f"- {here['cpu']}, {here['cores']} cores; {figure(row, 'build.engine.built_by')}. Quality is of the graph "
        "handed to TensorRT, rounded as its types say, through ONNX Runtime on the CPU. No latency is measured: "
        f"{figure(row, 'speed.untimed')}."
    )
    exports = (
        f"- Calibrated on {figures['calibrated_tokens']:,} tokens of the text's second half. The rest of an export's "
        "time is the check for overflow, quantization and writing; a policy is chosen before it. Peak memory is the "
        "exporting process's, Python and its libraries included."
    )
    return "\n".join([*lines, proof, exports])


def coreml(result: Result) -> str:
    lines: list[str] = []
    figures = result["figures"]
    for reports in models_of(result["reports"]):
        names = ["target", "size, MB", "× fp32", "over ideal bits", *QUALITY[is_decoder(reports[0])], "export, s"]
        names += ["× bare", "peak, MB", "× bare", "policy, s", "gates"]
        rows = [coreml_cells(report, figures["rows"][report["label"]]) for report in reports]
        lines += [f"{heading(reports[0])}:", "", *markdown(names, rows), ""]
    row, here = result["reports"][-1]["results"][-1], result["machine"]
    float32, float16 = (figures["evaluator"][kind] for kind in ("float32", "float16"))
    evaluator = (
        f"- The same fp16 package of {result['reports'][0]['name']}, evaluated in float32: ppl ratio "
        f"{float32['ppl_ratio']:.5f} ± {float32['ppl_ratio_se']:.5f}, {float32['prefill_tokens_per_s']:.0f} tokens a "
        f"second; with float16 emulated {float16['ppl_ratio']:.5f} ± {float16['ppl_ratio_se']:.5f}, "
        f"{float16['prefill_tokens_per_s']:.0f} tokens a second (prompts of 512 tokens)."
    )
    proof = (
        f"- {here['cpu']}, {here['cores']} cores; {figure(row, 'artifact.engine')}, coremltools "
        f"{result['versions']['coremltools']}. No latency is measured: {figure(row, 'speed.untimed')}."
    )
    meaning = (
        "- Over ideal bits: the package's bytes over those of its matrices at their own widths, without scales and "
        "tables. Bare: the same by torch and coremltools in a process of its own, without proof, policy and report; "
        f"static ranges are for a Mac there. Calibrated on {figures['calibrated_tokens']:,} tokens of the second half."
    )
    return "\n".join([*lines, proof, evaluator, meaning])


def coreml_cells(report: Result, beside: Result) -> list[str]:
    row, decoder = report["results"][-1], is_decoder(report)
    seconds, peak = figure(row, "build.export_s"), figure(row, "build.export_peak_rss_bytes")
    bare_s, bare_peak = figure(beside, "bare.s"), figure(beside, "bare.peak_rss_bytes")
    cells = [variant(row), megabytes(figure(row, "artifact.bytes")), number(figure(row, "artifact.size_ratio"), ".3f")]
    cells += [number(beside["size_over_ideal"], ".3f"), *quality_cells(row, decoder), number(seconds, ".1f")]
    cells += [number(seconds / bare_s, ".2f") if bare_s else "", megabytes(peak, ",.0f")]
    cells += [number(peak / bare_peak, ".2f") if bare_peak else ""]
    return [*cells, number(figure(row, "build.quantization.seconds"), ",.0f"), verdict(row)]


def merge(result: Result) -> str:
    figures, here = result["figures"], result["machine"]
    limit = f"{figures['limit_bytes'] / 1e9:.0f} GB ({figures['limit_by']})"
    title = (
        f"Measured by `bench/merge.py`: a bfloat16 Llama of {figures['model_bytes'] / 1e9:.1f} GB, LoRA of rank "
        f"{figures['rank']}, under a limit of {limit}, {here['cpu']}, {here['cores']} cores, times until the data is "
        f"on the disk. `cp` of the same folder took {figures['cp_s']:.0f} s, and {figures['cp_under_limit_s']:.0f} s "
        "under the same limit."
    )
    return "\n".join([title, "", *map(merged, figures["merges"])])


def merged(one: Result) -> str:
    peak, aim = megabytes(one["peak_rss_bytes"], ",.0f"), megabytes(one["aim_bytes"], ",.0f")
    return (
        f"- {one['name']}: {one['merge_s']:.0f} s, {one['bytes_per_s'] / 1e6:.0f} MB/s: {one['share_of_cp']:.0%} of "
        f"`cp`'s speed, {one['share_of_cp_under_limit']:.0%} of that under the limit. Peak memory {peak} MB; 1.3 × the "
        f"largest merged tensor's working set (three times its float32) + 300 MB is {aim} MB. All "
        f"{one['modules_proven']} modules proven."
    )


def calibration(result: Result) -> str:
    told = result["figures"]
    peak, weights = megabytes(told["peak_rss_bytes"], ",.0f"), megabytes(told["weights_bytes"], ",.0f")
    collecting, plain = told["collecting_s"], told["plain_s"]
    return (
        f"- Collecting the statistics of {told['windows']} windows of {told['window']} tokens took {collecting:.1f} s, "
        f"the plain forward passes {plain:.1f} s: {collecting / plain:.2f}×; peak memory {peak} MB, {weights} of them "
        f"the weights (`{result['command']}`)."
    )


def growth(result: Result) -> str:
    told = result["figures"]
    rows, lines = [], []
    for one in told["policies"]:
        cells = [one["model"], f"{one['parameters'] / 1e6:,.1f}", one["target"], f"{one['s']:,.0f}"]
        rows.append([*cells, f"{one['cpu_s']:,.0f}", megabytes(one["peak_rss_bytes"], ",.0f")])
    for target in dict.fromkeys(one["target"] for one in told["policies"]):
        *_, small, large = (one for one in told["policies"] if one["target"] == target)
        exponent = math.log(large["cpu_s"] / small["cpu_s"]) / math.log(large["parameters"] / small["parameters"])
        lines.append(
            f"- {target}: CPU seconds grow with the parameters to the power of {exponent:.2f} between the last two."
        )
    names = ["model", "million parameters", "target", "s", "CPU s", "peak memory, MB"]
    here = result["machine"]
    lines.append(
        f"- {here['cpu']}, {here['cores']} cores; {told['calibrated_tokens']:,} tokens, a gate of {told['gate']:g} "
        f"nats, which hardly a quantized layer keeps: every step is taken (`{result['command']}`)."
    )
    return "\n".join([*markdown(names, rows), "", *lines])


SECTIONS: dict[str, Callable[[Result], str]] = {
    "quality": quality,
    "policy": policy,
    "gguf": gguf,
    "tensorrt": tensorrt,
    "coreml": coreml,
    "litert": litert,
    "shapes": shapes,
    "prune": prune,
    "merge": merge,
    "calibration": calibration,
    "growth": growth,
    "families": families,
    "gpu": gpu,
}
# What a page says as long as there is no result: of machines that are at hand seldom, and not for `make bench`.
UNMEASURED = {"gpu": NOTHING}
