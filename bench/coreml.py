"""make bench ONLY=coreml: Core ML's precisions on real models without a Mac, beside what coremltools takes by itself.

    python -m bench.coreml --text wiki.test.raw

Each row is a job of its own, so that its seconds and its peak of memory have every step in them, beside those of the
same conversion by torch and coremltools alone. What is calibrated is so on the text's second half. Run it on an idle
machine. With --row the others stay; figures.measured says when, and of which commit, each row was measured.
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

import numpy as np

from bench import record
from bench.jobs import CALIBRATED, DECODER, ENCODER, OUT, THREADS, measure, options, second_half
from bench.rows import figure, variant
from exporter import machine
from exporter.measure import quality
from exporter.targets.coreml.convert import PACKAGE
from exporter.targets.coreml.held import weights_of
from exporter.tasks import known as tasks
from exporter.types import Checkpoint

PRECISIONS: dict[str, dict[str, dict[str, Any]]] = {
    DECODER: {
        "fp16": {}, "int8": {"max_ppl_ratio": 1.01}, "int4": {"max_ppl_ratio": 1.06}, "palettize6": {},
        "palettize4": {}, "int8-static": {},
    },
    ENCODER: {
        "fp16": {"min_cosine": 0.9999}, "int8": {"min_cosine": 0.999}, "int4": {"min_cosine": 0.98}, "palettize6": {},
        "palettize4": {}, "int8-static": {},
    },
}  # fmt: skip
BARE = ("fp16", "int8", "int4", "palettize6", "palettize4")  # coremltools makes static ones with a Mac's predictions
PROMPT, ROUNDS = 512, 5  # tokens, and of how many the median is taken


def in_process(*words: str) -> dict[str, Any]:
    """What this program's part printed as JSON, in a process of its own."""
    command = [sys.executable, "-m", "bench.coreml", "--part", *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def bare(model: Path, task: str, precision: str) -> dict[str, float]:
    """Seconds and bytes of a conversion by torch and coremltools alone: nothing is proven, told or kept.

    The trace is exporter's, for coremltools takes no model of transformers as it is.
    """
    start = perf_counter()
    import coremltools as ct
    import coremltools.optimize.coreml as cto

    from exporter.targets.coreml.convert import convert
    from exporter.targets.coreml.options import CoremlOptions

    given = Checkpoint(model, task, model.name, "0" * 64, 0)
    made, files = convert(given, CoremlOptions.model_validate({}), half=True).package, OUT / "coreml-bare"
    made.save(str(files / "float.mlpackage"))
    if precision != "fp16":
        palettes = precision.startswith("palettize")
        if palettes:
            bits = int(precision[-1])
            form: Any = cto.OpPalettizerConfig("kmeans", bits, granularity="per_grouped_channel", group_size=16)
        elif precision == "int4":
            form = cto.OpLinearQuantizerConfig("linear_symmetric", "int4", granularity="per_block", block_size=32)
        else:
            form = cto.OpLinearQuantizerConfig("linear_symmetric", "int8", granularity="per_channel")
        floats = ct.models.MLModel(str(files / "float.mlpackage"), skip_model_load=True)
        compress = cto.palettize_weights if palettes else cto.linear_quantize_weights
        compress(floats, cto.OptimizationConfig(global_config=form)).save(str(files / "compressed.mlpackage"))
    return {"s": perf_counter() - start, "peak_rss_bytes": machine.peak_rss()}


def evaluated(folder: Path, half: bool) -> dict[str, float]:
    """What the evaluator says of a folder's program, and its tokens a second on prompts of PROMPT."""
    from exporter.targets.coreml.mil.runner import open_mil

    reference = quality.Reference.load(folder.parent / "reference" / "reference.npz")
    with open_mil(folder / PACKAGE, THREADS, half) as runner:
        found, _ = tasks.compare(runner, reference)
        seconds = []
        for _ in range(ROUNDS):
            start = perf_counter()
            runner.logits(reference.passages.ids[:PROMPT])
            seconds.append(perf_counter() - start)
    ratio = found["ppl_ratio"]
    assert ratio.value is not None
    return {
        "ppl_ratio": ratio.value, "ppl_ratio_se": ratio.se or 0.0,
        "prefill_tokens_per_s": PROMPT / float(np.median(seconds)),
    }  # fmt: skip


def over_ideal(folder: Path, size: int) -> float:
    """An artifact's bytes over those of its matrices at the bits that they have, scales and palettes not counted."""
    return 8 * size / sum(one.numbers * one.bits for one in weights_of(folder))


def figures(report: dict[str, Any], output: Path) -> dict[str, Any]:
    """What is measured beside a row."""
    row = report["results"][-1]
    size = figure(row, "artifact.bytes")
    if size is None:
        sys.exit(f"error: {variant(row)} of {report['name']}: {row['reason']}")
    found: dict[str, Any] = {"size_over_ideal": over_ideal(output / f"coreml-{row['precision']}", int(size))}
    if row["precision"] in BARE:
        model = json.loads((output / "reference" / "manifest.json").read_text(encoding="utf-8"))["checkpoint"]
        found["bare"] = in_process("bare", model, report["model"]["task"], row["precision"])
        shutil.rmtree(OUT / "coreml-bare")
    return found


def main() -> None:
    if "--part" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--part", nargs="+")
        name, *words = parser.parse_args().part
        if name == "bare":
            told = bare(Path(words[0]), words[1], words[2])
        else:
            told = evaluated(Path(words[0]), half=words[1] == "float16")
        print(json.dumps(told))
        return
    parser = options(__doc__)
    parser.add_argument("--row", action="append", default=[], help="MODEL:PRECISION: this one alone, and keep the rest")
    arguments = parser.parse_args()
    if sys.platform == "darwin":
        sys.exit("error: here Core ML itself would be measured; this table is of machines without it")
    about = record.begin("coreml", THREADS)
    kept = json.loads((record.RESULTS / "coreml.json").read_text(encoding="utf-8")) if arguments.row else None
    text = arguments.text
    given = {"calib_text": second_half(text), "calib_tokens": CALIBRATED, "speed": False}
    reports = {one["label"]: one for one in kept["reports"]} if kept else {}
    beside: dict[str, Any] = kept["figures"] if kept else {"calibrated_tokens": CALIBRATED, "rows": {}, "measured": {}}
    for model, precisions in PRECISIONS.items():
        for precision, gates in precisions.items():
            target, folder = f"coreml:{precision}", f"coreml-{model}-{precision}"
            label = f"{model} to {target}"
            if kept and f"{model}:{precision}" not in arguments.row:
                continue
            report = measure(model, text, (target,), folder, label, again=arguments.again, **given, **gates)
            reports[label] = report
            beside["rows"][label] = figures(report, OUT / folder)
            beside["measured"][label] = {name: about[name] for name in ("date", "commit")}
    half = OUT / f"coreml-{DECODER}-fp16" / "coreml-fp16"
    if half.is_dir():  # else that of the rows that were kept stays too
        beside["evaluator"] = {kind: in_process("evaluated", str(half), kind) for kind in ("float32", "float16")}
    record.write(about, list(reports.values()), beside)


if __name__ == "__main__":
    main()
