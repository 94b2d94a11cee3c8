"""make bench: measures the README's table on real models, and writes it between the README's markers.

    python -m bench.quality --text wiki.test.raw        both models, and what the pipeline adds to its parts
    python -m bench.quality --text FILE --keep-readme   print only

The text is WikiText-2's test split, raw (CC BY-SA 4.0); it is not shipped. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

from exporter import Job, run
from exporter.machine import cpu_name
from exporter.measure import latency, quality

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "out" / "bench"
TOKENS, THREADS = 8192, 2
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
QUALITY = {True: ["ppl ratio ± se", "KL", "top-1"], False: ["cosine ± se"]}  # of a decoder or not: columns
DECODER = "smollm2-135m"
ENCODER = "all-minilm-l6-v2"
JOBS = {
    DECODER: ("torch:bf16", "onnx:fp32", "onnx:fp16", "onnx:int8-weight", "onnx:int8-dynamic", "onnx:int4-weight"),
    ENCODER: ("torch:bf16", "torch:int8-dynamic", "onnx:fp32", "onnx:fp16", "onnx:int8-dynamic", "onnx:int4-weight"),
}


def measure(
    model: str, text: Path, targets: tuple[str, ...], name: str, *, again: bool = False, **options: Any
) -> dict[str, Any]:
    """The report of one whole job on a new folder; `options` are more fields of the job.

    `again`: on the folder as it is, whose artifacts are used where they are the same, and measured anew.
    """
    if not again:
        shutil.rmtree(OUT / name, ignore_errors=True)
    print(f"{name}: {', '.join(targets)}", file=sys.stderr)
    return run(
        Job(
            model=model,
            target=targets,
            eval_text=text,
            eval_tokens=TOKENS,
            threads=THREADS,
            output=OUT / name,
            **options,
        ),
        lambda what, done, total: print(f"\r  {what} {done}/{total}".ljust(70), end="", file=sys.stderr, flush=True),
        lambda variant, error: print(f"\n  {variant}: {error}", file=sys.stderr),
    )


def number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def with_error(value: float | None, error: float | None, form: str) -> str:
    """A figure and its standard error, which is 0 where there is one passage only."""
    return "" if value is None else f"{value:{form}} ± {error or 0:{form}}"


def quality_cells(row: dict[str, Any], decoder: bool) -> list[str]:
    """What stands below QUALITY's names."""
    if not decoder:
        return [with_error(row["cosine"], row["cosine_se"], ".5f")]
    ratio = with_error(row["ppl_ratio"], row["ppl_ratio_se"], ".4f")
    return [ratio, number(row["kl"], ".5f"), number(row["top1"], ".4f")]


def heading(report: dict[str, Any]) -> str:
    """The model and what it was measured on."""
    about = report["evaluation"]
    unit = "tokens" if about["reference_ppl"] else f"passages of {about['window']} tokens"
    return f"**{report['name']}**, {about['tokens_scored']:,} {unit} of {about['text']}"


def markdown(names: list[str], rows: list[list[str]]) -> list[str]:
    """A table whose first column and last are words."""
    rule = "|---" + "|---:" * (len(names) - 2) + "|---|"
    head, *body = ("| " + " | ".join(cells) + " |" for cells in (names, *rows))
    return [head, rule, *body]


def second_half(text: Path) -> Path:
    """A file to calibrate on: of a text whose first tokens are measured on, other articles of the same kind."""
    whole, file = text.read_text(encoding="utf-8"), OUT / "calibration.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(whole[len(whole) // 2 :], encoding="utf-8")
    return file


def write_section(begin: str, end: str, text: str) -> None:
    """Puts a text between two markers of the README."""
    readme = ROOT / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(begin)
    readme.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}", encoding="utf-8")


def table(report: dict[str, Any]) -> list[str]:
    decoder = report["evaluation"]["reference_ppl"] is not None
    names = ["target", "size, MB", "× fp32", *QUALITY[decoder]]
    names += [
        "prefill, tok/s",
        *(["decode, tok/s"] if decoder else ["ms at 128", "ms at 512"]),
        "peak RSS, MB",
        "gates",
    ]
    rows = []
    for row in report["results"]:
        cells = [
            f"{row['target']}:{row['precision']}",
            number(row["bytes"] / 1e6, ",.1f"),
            number(row["size_ratio"], ".3f"),
        ]
        cells += quality_cells(row, decoder)
        cells.append(number(row["prefill_tokens_per_s"], ",.0f"))
        if decoder:
            cells.append(number(row["decode_tokens_per_s"], ".1f"))
        else:
            cells += [number(row["latency_ms"][name]["p50"], ".1f") for name in ("prefill_128", "prefill")]
        gates = (
            "the reference" if not row["gates"] else "passed" if all(g["passed"] for g in row["gates"]) else "failed"
        )
        rows.append([*cells, number(row["peak_rss_bytes"] / 1e6, ",.0f"), gates])
    return markdown(names, rows)


PARTS = {
    "builder": "{python} -m onnxruntime_genai.models.builder -p fp32 -e cpu -i {model} -o {work}/float -c {work}/cache",
    "quantizer": "{python} -m bench.quality --part quantize --work {work}",
    "reference": "{python} -m bench.quality --part reference --run {run} --model {model}",
    "onnx:fp32": "{python} -m bench.quality --part onnx-fp32 --run {run}",
    "onnx:int8-weight": "{python} -m bench.quality --part onnx-int8-weight --run {run}",
}


def parts_alone(done: Path, model: Path) -> dict[str, float]:
    """Seconds of each step as a person would do it by hand: one process after another, and nothing between them."""
    work = OUT / "parts"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    seconds = {}
    for name, line in PARTS.items():
        command = line.format(python=sys.executable, work=work, run=done, model=model).split()
        start = perf_counter()
        with (work / "log").open("a") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log)
        seconds[name] = perf_counter() - start
    return seconds


def part(what: str, work: Path | None, done: Path | None, model: Path | None) -> None:
    """One of PARTS, in this process: the library calls that it is, without exporter's pipeline around them."""
    if what == "quantize":
        import onnx_ir as ir

        from exporter.targets.onnx.quantize import quantize_by_rule
        from exporter.targets.onnx_graph.file import save_graph

        assert work is not None
        graph = ir.load(work / "float" / "model.onnx")
        quantize_by_rule(graph, "int8-weight", decoder=True)
        save_graph(graph, work / "int8.onnx")
        return
    assert done is not None
    reference = quality.Reference.load(done / "reference" / "reference.npz")
    if what == "reference":
        from exporter.targets.torch.target import open_checkpoint

        assert model is not None
        runner: Any = open_checkpoint(model, reference.passages.task, THREADS)
        quality.answer(runner, reference.passages, lambda done, total: None)
    else:
        from exporter.targets.onnx_graph.session import OnnxDecoder

        runner = OnnxDecoder(done / what / "model.onnx", THREADS)
        quality.compare(runner, reference, lambda done, total: None)
    latency.warm_up(runner, reference.passages.ids, 8192)
    for _ in range(Job.model_fields["repeats"].default):
        latency.measure_round(runner, reference.passages.ids, 8192)


def overhead(text: Path) -> list[str]:
    """What the pipeline adds to its parts, and what an export takes in memory."""
    start = perf_counter()
    report = measure(DECODER, text, ("onnx:fp32", "onnx:int8-weight"), "overhead")
    whole = perf_counter() - start
    manifest = json.loads((OUT / "overhead" / "reference" / "manifest.json").read_text())
    seconds = parts_alone(OUT / "overhead", Path(manifest["checkpoint"]))
    shutil.rmtree(OUT / "parts")
    rows = {f"{row['target']}:{row['precision']}": row for row in report["results"]}
    peaks = {name: row["export_peak_rss_bytes"] for name, row in rows.items() if row["export_peak_rss_bytes"]}
    float_bytes = rows["torch:fp32"]["bytes"]
    memory = ", ".join(f"{name} {peak / 1e6:,.0f} MB ({peak / float_bytes:.2f}×)" for name, peak in peaks.items())
    alone = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
    total = sum(seconds.values())
    whole_run = (
        f"- A whole run of {DECODER} to onnx:fp32 and onnx:int8-weight took {whole:.1f} s; its parts by hand, one "
        f"process after the other, {total:.1f} s ({alone}): {whole / total:.2f}×."
    )
    return [whole_run, f"- Peak memory of its exports, and over the fp32 checkpoint's size: {memory}."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--keep-readme", action="store_true")
    parser.add_argument("--part")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--model", type=Path)
    arguments = parser.parse_args()
    if arguments.part:
        part(arguments.part, arguments.work, arguments.run, arguments.model)
        return
    if arguments.text is None or not arguments.text.is_file():
        sys.exit(f"error: no text at {arguments.text}; give WikiText-2's wiki.test.raw: make bench BENCH_TEXT=FILE")
    lines = []
    for model, targets in JOBS.items():
        report = measure(model, arguments.text, targets, model, policy="off")  # each precision's own scheme
        load = report["machine"]["load_average"][0]
        lines += [
            f"{heading(report)}, {THREADS} threads, load average before it {load:.1f}:",
            "",
            *table(report),
            "",
        ]
    versions = report["machine"]["versions"]
    named = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "transformers", "onnxruntime", "onnxruntime-genai")
    )
    lines += overhead(arguments.text)
    lines += [f"- Machine: {cpu_name()}, {THREADS} cores; {named}."]
    text = "\n".join(lines)
    print(text)
    if not arguments.keep_readme:
        write_section(BEGIN, END, text)


if __name__ == "__main__":
    main()
