"""make bench, GGUF: what each type costs with and without importance matrix, and exporter's time over llama.cpp's.

    python -m bench.gguf --text wiki.test.raw            measures, and writes the README's table
    python -m bench.gguf --text FILE --keep-readme       print only

Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

from bench.quality import DECODER, OUT, THREADS, TOKENS, measure, number, write_section
from exporter.machine import cpu_name
from exporter.store import cache_folder

BEGIN, END = "<!-- gguf bench: begin -->", "<!-- gguf bench: end -->"
COMPARED = ("torch:bf16", "gguf:f16", "gguf:q8_0", "gguf:q5_k_m", "gguf:q4_k_m", "gguf:q4_0", "gguf:iq4_xs")
WITHOUT = ("gguf:q4_k_m", "gguf:q4_0", "gguf:iq4_xs")
FOUR = ("q8_0", "q5_k_m", "q4_k_m", "q4_0")
QUANTIZE = """
import ctypes, sys, llama_cpp
source, target, kind, threads = sys.argv[1:]
settings = llama_cpp.llama_model_quantize_default_params()
settings.nthread, settings.ftype = int(threads), int(kind)
sys.exit(llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(settings)))
"""


def table(reports: dict[str, dict[str, Any]]) -> list[str]:
    names = [
        "target",
        "matrix",
        "size, MB",
        "× fp32",
        "ppl ratio ± se",
        "KL",
        "top-1",
        "prefill, tok/s",
        "decode, tok/s",
    ]
    lines = ["| " + " | ".join(names) + " |", "|---|---" + "|---:" * (len(names) - 2) + "|"]
    for wanted, report in reports.items():
        for row in report["results"]:
            name = f"{row['target']}:{row['precision']}"
            if wanted == "no" and name not in WITHOUT:
                continue
            used = "importance matrix of" in (row["reason"] or "")
            cells = [
                name,
                "yes" if used else "no" if name in WITHOUT else "",
                number(row["bytes"] / 1e6, ",.1f"),
                number(row["size_ratio"], ".3f"),
                f"{row['ppl_ratio']:.4f} ± {row['ppl_ratio_se']:.4f}",
                number(row["kl"], ".6f"),
                number(row["top1"], ".4f"),
                number(row["prefill_tokens_per_s"], ",.0f"),
                number(row["decode_tokens_per_s"], ".1f"),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def four_types(text: Path) -> str:
    """Seconds that exporter and llama.cpp's own tools take to write FOUR, with one conversion to float16."""
    from exporter import Job, run
    from exporter.targets.gguf.types import FILE_TYPES

    output = OUT / "gguf-four"
    shutil.rmtree(output, ignore_errors=True)
    wanted = tuple(f"gguf:{kind}" for kind in FOUR)
    short = {"eval_text": text, "eval_tokens": 64, "window": 32, "speed": False, "imatrix": "off"}
    report = run(Job(model=DECODER, target=wanted, output=output, threads=THREADS, **short))
    ours = {row["precision"]: row["export_s"] for row in report["results"] if row["target"] == "gguf"}
    checkpoint = json.loads((output / "reference" / "manifest.json").read_text())["checkpoint"]
    [script] = (cache_folder() / "llama.cpp").rglob("convert_hf_to_gguf.py")
    environment = os.environ | {"PYTHONPATH": str(script.parent / "gguf-py")}
    half = output / "bare.gguf"
    lines = {"conversion": [str(script), checkpoint, "--outtype", "f16", "--outfile", str(half)]}
    for kind in FOUR:
        lines[kind] = [
            "-c",
            QUANTIZE,
            str(half),
            str(output / f"bare-{kind}.gguf"),
            str(FILE_TYPES[kind]),
            str(THREADS),
        ]
    bare = {}
    for name, arguments in lines.items():
        start = perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)
        bare[name] = perf_counter() - start
    shutil.rmtree(output)
    total, tools = sum(ours.values()), sum(bare.values())
    parts = [", ".join(f"{name} {value:.1f}" for name, value in one.items()) for one in (ours, bare)]
    return (
        f"- {', '.join(FOUR)} of {DECODER} took {total:.1f} s ({parts[0]}: the first one converts to float16, once for "
        f"all); llama.cpp's converter and quantizer by hand {tools:.1f} s ({parts[1]}): {total / tools:.2f}×."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--keep-readme", action="store_true")
    arguments = parser.parse_args()
    times = four_types(arguments.text)
    reports = {
        "yes": measure(DECODER, arguments.text, COMPARED, "gguf"),
        "no": measure(DECODER, arguments.text, WITHOUT, "gguf-no-matrix", imatrix="off"),
    }
    write(reports, times, arguments.keep_readme)


def write(reports: dict[str, dict[str, Any]], times: str, keep_readme: bool) -> None:
    about, machine = reports["yes"]["evaluation"], reports["yes"]["machine"]
    title = (
        f"**{DECODER}**, {about['tokens_scored']:,} of {TOKENS:,} tokens of {about['text']}, {THREADS} threads, load "
        f"average before it {machine['load_average'][0]:.1f}:"
    )
    version = machine["versions"]["llama-cpp-python"]
    text = "\n".join([title, "", *table(reports), "", times, f"- {cpu_name()}; llama-cpp-python {version}."])
    print(text)
    if not keep_readme:
        write_section(BEGIN, END, text)


if __name__ == "__main__":
    main()
