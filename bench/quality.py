"""make bench ONLY=quality: what torch's and ONNX's precisions cost on real models, and what the pipeline adds.

    python -m bench.quality --text wiki.test.raw

Both models to every precision that they have with its own scheme, and the seconds that a whole run takes over those of
its parts, done by hand. Run it on an idle machine.
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

from bench import record
from bench.jobs import DECODER, ENCODER, OUT, THREADS, measure, options
from exporter import Job
from exporter.measure import latency, quality
from exporter.tasks import known as tasks

JOBS = {
    DECODER: ("torch:bf16", "onnx:fp32", "onnx:fp16", "onnx:int8-weight", "onnx:int8-dynamic", "onnx:int4-weight"),
    ENCODER: ("torch:bf16", "torch:int8-dynamic", "onnx:fp32", "onnx:fp16", "onnx:int8-dynamic", "onnx:int4-weight"),
}
PARTS = {
    "trace": "{python} -m bench.quality --part trace --work {work} --model {model}",
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
    shutil.rmtree(work)
    return seconds


def part(what: str, work: Path | None, done: Path | None, model: Path | None) -> None:
    """One of PARTS, in this process: the library calls that it is, without exporter's pipeline around them."""
    if what == "trace":
        from exporter.targets.onnx_graph.attention_operator import ANY_SIZE
        from exporter.targets.onnx_graph.cached_attention import fuse
        from exporter.targets.onnx_graph.traced import trace_causal_lm

        assert work is not None
        assert model is not None
        (work / "float").mkdir()
        trace_causal_lm(model, work / "float" / "model.onnx", attention=ANY_SIZE, fuse=fuse)
        return
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
        tasks.answer(runner, reference.passages, lambda done, total: None)
    else:
        from exporter.targets.onnx.layout import MODEL
        from exporter.targets.onnx_graph.session import OnnxDecoder

        runner = OnnxDecoder(done / what / MODEL, THREADS)
        tasks.compare(runner, reference, lambda done, total: None)
    latency.warm_up(runner, reference.passages.ids, 8192)
    for _ in range(Job.model_fields["repeats"].default):
        latency.measure_round(runner, reference.passages.ids, 8192)


def overhead(text: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The report of a whole run, whose exports' memory is in it, and its seconds beside those of its parts by hand."""
    start = perf_counter()
    report = measure(DECODER, text, ("onnx:fp32", "onnx:int8-weight"), "overhead", "overhead")
    whole = perf_counter() - start
    manifest = json.loads((OUT / "overhead" / "reference" / "manifest.json").read_text())
    seconds = parts_alone(OUT / "overhead", Path(manifest["checkpoint"]))
    return report, {"whole_s": whole, "parts_total_s": sum(seconds.values()), "parts_s": seconds}


def main() -> None:
    if "--part" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--part")
        for name in ("--work", "--run", "--model"):
            parser.add_argument(name, type=Path)
        one = parser.parse_args()
        part(one.part, one.work, one.run, one.model)
        return
    arguments = options(__doc__).parse_args()
    about = record.begin("quality", THREADS)
    reports = [
        measure(model, arguments.text, targets, model, "own schemes", again=arguments.again, policy="off")
        for model, targets in JOBS.items()
    ]
    report, figures = overhead(arguments.text)
    record.write(about, [*reports, report], figures)


if __name__ == "__main__":
    main()
