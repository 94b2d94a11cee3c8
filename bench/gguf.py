"""make bench ONLY=gguf: what each GGUF type costs with and without importance matrix, and exporter's time over
llama.cpp's.

    python -m bench.gguf --text wiki.test.raw

Run it on an idle machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

from bench import record
from bench.jobs import DECODER, OUT, THREADS, measure, options
from bench.rows import figure, variant
from exporter.cache import CONVERTER

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


def four_types(text: Path) -> dict[str, Any]:
    """Seconds that exporter and llama.cpp's own tools take to write FOUR, with one conversion to float16."""
    wanted = tuple(f"gguf:{kind}" for kind in FOUR)
    short: dict[str, Any] = {"eval_tokens": 64, "window": 32, "speed": False, "gguf": {"imatrix": "off"}}
    report = measure(DECODER, text, wanted, "gguf-four", "four types", **short)
    rows = [row for row in report["results"] if row["target"] == "gguf"]
    ours = {row["precision"]: float(figure(row, "build.export_s")) for row in rows}
    output = OUT / "gguf-four"
    bare = by_hand(output)
    shutil.rmtree(output)
    return {
        "four_total_s": sum(ours.values()), "four_s": ours, "by_hand_total_s": sum(bare.values()), "by_hand_s": bare,
    }  # fmt: skip


def by_hand(output: Path) -> dict[str, float]:
    """Seconds of llama.cpp's converter and of its quantizer for each of FOUR, one process after the other."""
    from exporter.targets.gguf.types import FILE_TYPES

    checkpoint = json.loads((output / "reference" / "manifest.json").read_text())["checkpoint"]
    [script] = CONVERTER.place().rglob("convert_hf_to_gguf.py")
    environment = os.environ | {"PYTHONPATH": str(script.parent / "gguf-py")}
    half = output / "bare.gguf"
    lines = {"conversion": [str(script), checkpoint, "--outtype", "f16", "--outfile", str(half)]}
    for kind in FOUR:
        target = str(output / f"bare-{kind}.gguf")
        lines[kind] = ["-c", QUANTIZE, str(half), target, str(FILE_TYPES[kind]), str(THREADS)]
    seconds = {}
    for name, arguments in lines.items():
        start = perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)
        seconds[name] = perf_counter() - start
    return seconds


def main() -> None:
    arguments = options(__doc__).parse_args()
    about = record.begin("gguf", THREADS)
    times = four_types(arguments.text)
    given = {"again": arguments.again}
    compared = measure(DECODER, arguments.text, COMPARED, "gguf", "with matrix", **given)
    without = measure(
        DECODER, arguments.text, WITHOUT, "gguf-no-matrix", "without matrix", gguf={"imatrix": "off"}, **given
    )
    # Some types gain nothing by a matrix and get none: a row says in its words that it has one.
    had = [variant(row) for row in compared["results"] if "importance matrix of" in (row["reason"] or "")]
    record.write(about, [compared, without], {"with_matrix": had, **times})


if __name__ == "__main__":
    main()
