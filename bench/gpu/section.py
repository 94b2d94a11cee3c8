"""The text of bench/results/gpu.json, and what stands in its place as long as there is none."""

from __future__ import annotations

from bench.cells import Result, heading, markdown, megabytes, number, with_error
from bench.rows import figure, variant, verdict

NOTHING = (
    "Nothing was measured on a GPU yet, and no figure of one is on these pages. `python -m bench.gpu` writes them here."
)
YARDSTICK = "torch:fp16"


def gpu(result: Result) -> str:
    figures, [report] = result["figures"], result["reports"]
    told = figures["rows"]
    yardstick = next((row for row in report["results"] if variant(row) == YARDSTICK), None)
    names = ["target", "ppl ratio ± se", "from the CPU's", "top-1", "CPU's", "prefill, tok/s", f"× {YARDSTICK}"]
    names += ["decode, tok/s", f"× {YARDSTICK}", "of the bandwidth", "on the device, MB", "nodes on the CPU", "gates"]
    rows = []
    for row in report["results"]:
        mine = told[variant(row)]
        cells = [variant(row), with_error(row, "ppl_ratio", ".4f"), number(mine["ppl_ratio_from_cpu"], "+.1e")]
        cells += [number(mine["top1"], ".4f"), number(mine["cpu"]["top1"], ".4f")]
        for name, form in (("prefill_tokens_per_s", ",.0f"), ("decode_tokens_per_s", ",.0f")):
            rate, base = (figure(one, f"speed.{name}") for one in (row, yardstick))
            cells += [number(rate, form), number(rate / base if rate and base else None, ".2f")]
        cells += [number(mine["share_of_peak"], ".0%")]
        held = figure(row, "memory.device_bytes")
        cells += [megabytes(sum(held.values()) if held else None, ",.0f")]
        on_cpu = figure(row, "artifact.placement.on_cpu")
        cells += ["" if on_cpu is None else str(sum(on_cpu.values())), verdict(row)]
        rows.append(cells)
    lines = [f"{heading(report)}, on {figures['card']}:", "", *markdown(names, rows), ""]
    peak = figures["peak_bytes_per_s"]
    bandwidth = (
        f"{peak / 1e12:.2f} TB/s, as NVIDIA publishes it; a token reads all weights once, and the cache beside them "
        "is not counted"
        if peak
        else "not known, so no share of it is told"
    )
    lines.append(f"- {figures['card']}'s bandwidth: {bandwidth}.")
    lost = {name: row["reason"] for name, row in told.items() if row["status"] != "ok"}
    lines += [f"- {name}: {row}." for name, row in lost.items()]
    if figures["not_measured"]:
        lines.append(f"- Not measured: {', '.join(figures['not_measured'])}.")
    packages = ("torch", "transformers", "onnxruntime-gpu", "onnxruntime")
    there = ", ".join(f"{name} {result['versions'][name]}" for name in packages if name in result["versions"])
    here = result["machine"]
    lines.append(f"- {here['cpu']}, {here['cores']} cores; {there}. The CPU's rows: {figures['cpu']['cpu']}.")
    return "\n".join(lines)
