"""make bench ONLY=litert: LiteRT's precisions on real models, and a conversion beside litert-torch alone.

    python -m bench.litert --text wiki.test.raw

All precisions of a model are one job, with torch and ONNX Runtime's int8 beside them: their rounds are interleaved, so
that whatever else the machine does hits all alike. What is calibrated is so on the text's second half. The conversion
is measured in processes of its own. Run it on an idle machine. With --model the other's figures stay;
figures.measured says when, and of which commit, each model was measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from bench import record
from bench.jobs import CALIBRATED, DECODER, ENCODER, OUT, THREADS, measure, options, second_half
from exporter import machine
from exporter.types import Checkpoint, ExportRequest

TARGETS = {DECODER: ("litert:all",), ENCODER: ("litert:all", "onnx:int8-dynamic")}
PARTS = ("whole", "bare")


def converted(part: str, model: Path, task: str, reference: Path) -> dict[str, float]:
    """Seconds and bytes of a float32 artifact of the default signatures, in this process.

    whole: exporter's export, its proofs included. bare: the same module by litert-torch as it comes; the module is
    exporter's, for litert-torch takes no KV cache of transformers as it is.
    """
    checkpoint = Checkpoint(model, task, model.name, "0" * 64, 0)
    with TemporaryDirectory(dir=OUT) as name:
        folder, scratch = Path(name) / "out", Path(name) / "scratch"
        folder.mkdir()
        scratch.mkdir()
        start = perf_counter()
        from exporter.targets.litert.options import LitertOptions

        given = LitertOptions.model_validate({})
        if part == "whole":
            from exporter.targets.litert.target import export

            export(ExportRequest(checkpoint, "fp32", folder, scratch, THREADS, given, reference=reference))
        else:
            from litert_torch import Converter

            from exporter.targets.litert.convert import wrap

            wrapped, converter = wrap(checkpoint, given), Converter()
            for signature, tensors in wrapped.given.items():
                converter.add_signature(signature, wrapped.module, sample_kwargs=dict(tensors))
            converter.convert().export(str(folder / "model.tflite"))
        size = sum(path.stat().st_size for path in folder.glob("*.tflite"))
        return {"s": perf_counter() - start, "peak_rss_bytes": machine.peak_rss(), "bytes": size}


def in_process(*words: str) -> dict[str, Any]:
    """What this program's part printed as JSON, in a process of its own."""
    print(f"  conversion: {words[0]}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "bench.litert", "--part", *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    if "--part" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--part", nargs=4)
        part, model, task, reference = parser.parse_args().part
        print(json.dumps(converted(part, Path(model), task, Path(reference))))
        return
    parser = options(__doc__)
    parser.add_argument("--model", choices=list(TARGETS), help="this one alone, and keep the other")
    arguments = parser.parse_args()
    about = record.begin("litert", THREADS)
    file = record.RESULTS / "litert.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if arguments.model and file.is_file() else None
    text = arguments.text
    given = {"calib_text": second_half(text), "calib_tokens": CALIBRATED}
    reports = {one["label"]: one for one in kept["reports"]} if kept else {}
    beside: dict[str, Any] = kept["figures"] if kept else {"calibrated_tokens": CALIBRATED}
    for model, targets in TARGETS.items():
        if arguments.model not in (None, model):
            continue
        folder = f"litert-{model}"
        reports[model] = report = measure(model, text, targets, folder, model, again=arguments.again, **given)
        reference = OUT / folder / "reference"
        path = json.loads((reference / "manifest.json").read_text(encoding="utf-8"))["checkpoint"]
        words = (path, report["model"]["task"], str(reference))
        beside.setdefault("conversion", {})[model] = {part: in_process(part, *words) for part in PARTS}
        beside.setdefault("measured", {})[model] = {name: about[name] for name in ("date", "commit")}
    record.write(about, [reports[model] for model in TARGETS if model in reports], beside)


if __name__ == "__main__":
    main()
