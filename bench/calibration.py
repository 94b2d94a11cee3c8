"""make bench ONLY=calibration: calibrating's time against the plain forward passes, its memory on top of the model.

    python -m bench.calibration                         64 windows of 512 tokens of the standard library's topics
    python -m bench.calibration FOLDER --windows 16     of another causal checkpoint than SmolLM2's

Memory is measured in a process that only calibrates; time in another, where plain passes and collecting ones take
turns, so that what else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import record
from bench.jobs import DECODER
from exporter.checkpoint.load import prepare, prepared
from exporter.checkpoint.recipes import RECIPES
from exporter.machine import peak_rss, usable_cores
from exporter.pipeline.texts import TOPICS, standard_library_topics
from exporter.quantization.calibrate import WINDOW, calibrate, calibration_windows
from exporter.quantization.statistics import collect
from exporter.types import GENERATION, Checkpoint


def silent(done: int, total: int) -> None:
    """No progress: it would be measured too."""


def memory(model: Path, windows: int, rounds: int) -> dict[str, float]:
    """The peak of a process that does what the product's worker does, and nothing else."""
    with tempfile.TemporaryDirectory() as place:
        before = peak_rss()
        calibrate(
            Checkpoint(model, GENERATION, "measured", "0" * 64, 0),
            Path(place) / "statistics",
            "key",
            usable_cores(),
            silent,
            name=TOPICS,
            text=standard_library_topics(),
            tokens=windows * WINDOW,
            skip=0,
            max_length=None,
        )
        stored = sum(file.stat().st_size for file in (Path(place) / "statistics").iterdir())
    weights = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    return {
        "before_bytes": before, "peak_rss_bytes": peak_rss(), "statistics_bytes": stored, "weights_bytes": weights,
    }  # fmt: skip


def times(model: Path, windows: int, rounds: int) -> dict[str, float]:
    """Seconds of the fastest plain and the fastest collecting pass over all windows: on the clock, and of all cores."""
    import torch
    from transformers import AutoTokenizer

    from exporter.checkpoint.model import load_model

    torch.set_num_threads(usable_cores())
    loaded = load_model(model, GENERATION, "float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    pieces = calibration_windows(tokenizer, standard_library_topics(), 0, windows * WINDOW, None)

    def plain() -> None:
        with torch.inference_mode():
            for piece in pieces:
                loaded(input_ids=piece[None])

    collect(loaded, pieces[:1], silent)
    taken: dict[str, float] = {}
    for _ in range(rounds):
        for name, one in (("plain", plain), ("collecting", lambda: collect(loaded, pieces, silent))):
            start = time.perf_counter(), time.process_time()
            one()
            ends = time.perf_counter(), time.process_time()
            for kind, begin, end in zip(("_s", "_cpu_s"), start, ends, strict=True):
                taken[name + kind] = min(taken.get(name + kind, float("inf")), end - begin)
    return taken | {"windows": len(pieces), "window": WINDOW}


def child(what: str, options: argparse.Namespace) -> dict[str, Any]:
    """One of the two, in a process of its own."""
    command = [sys.executable, "-m", "bench.calibration", options.folder, "--windows", str(options.windows)]
    done = subprocess.run(
        [*command, "--rounds", str(options.rounds), "--only", what], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2, help="of which the fastest counts")
    parser.add_argument("--only", choices=("memory", "times"), help=argparse.SUPPRESS)  # what a child does
    options = parser.parse_args()
    if options.only:
        measure = memory if options.only == "memory" else times
        print(json.dumps(measure(options.folder, options.windows, options.rounds)))
        return
    about = record.begin("calibration", usable_cores())
    recipe = RECIPES[DECODER]
    options.folder = options.folder or prepared(recipe) or prepare(recipe, lambda holder: None)
    record.write(about, (), {**child("memory", options), **child("times", options)})


if __name__ == "__main__":
    main()
