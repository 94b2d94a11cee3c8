"""make bench ONLY=shapes: models of T5-small's, BART-base's and ViT-base's shape, beside other exporters.

    pip install --target out/optimum --no-deps optimum-onnx==0.1.0 optimum==2.1.0 transformers==4.57.6 \
        'tokenizers<0.23' 'huggingface_hub<1'
    python -m bench.shapes --text wiki.test.raw --optimum out/optimum

The weights are random: what is measured is how long an export takes, in what memory, how large its int8 artifacts are
and how fast, and nothing of quality that would say anything of the real models. An export is measured in a process of
its own: exporter's with its proof, transformers' own exporter, and optimum-onnx with the older transformers that it
asks for, which lie in a folder of their own. The tokenizer is MiniLM's. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from bench import record
from bench.jobs import ENCODER, OUT, THREADS, measure, options
from exporter import machine
from exporter.form import IMAGES, TEXT2TEXT

SHAPES = {"T5-small": TEXT2TEXT, "BART-base": TEXT2TEXT, "ViT-base": IMAGES}
TARGETS = {
    TEXT2TEXT: ("onnx:fp32", "onnx:int8-weight", "onnx:int8-dynamic"),
    IMAGES: ("onnx:fp32", "onnx:int8-weight", "onnx:int8-dynamic", "onnx:int8-static"),
}
PARTS = ("exporter", "transformers", "optimum")
TOKENS = 2048


def checkpoint(shape: str) -> Path:
    """The folder of a random model, made once."""
    folder = OUT / "shapes" / shape
    if (folder / "config.json").is_file():
        return folder
    import torch
    import transformers

    from exporter.checkpoint.load import locate

    t: Any = transformers
    torch.manual_seed(0)
    if SHAPES[shape] == IMAGES:
        classes: dict[int, str] = {number: f"class {number}" for number in range(1000)}
        t.ViTForImageClassification(t.ViTConfig(num_labels=1000, id2label=classes)).save_pretrained(folder)
        t.ViTImageProcessorPil().save_pretrained(folder)
        return folder
    t.AutoTokenizer.from_pretrained(locate(ENCODER, offline=True)).save_pretrained(folder)
    if shape == "T5-small":
        model = t.T5ForConditionalGeneration(t.T5Config(decoder_start_token_id=0))
    else:
        sizes: dict[str, int] = {}
        for half in ("encoder", "decoder"):
            sizes |= {f"{half}_layers": 6, f"{half}_attention_heads": 12, f"{half}_ffn_dim": 3072}
        model = t.BartForConditionalGeneration(t.BartConfig(d_model=768, **sizes))
    model.save_pretrained(folder)
    return folder


def ours(model: Path, folder: Path, scratch: Path, reference: Path | None) -> None:
    from exporter.targets.onnx.target import ONNX
    from exporter.types import Checkpoint, ExportRequest

    source = Checkpoint(model, SHAPES[model.name], model.name, "0" * 64, 0)
    ONNX.export(ExportRequest(source, "fp32", folder, scratch, THREADS, reference=reference))


def by_transformers(model: Path, folder: Path) -> None:
    import torch
    import transformers
    import transformers.exporters

    t: Any = transformers
    config, exporter = t.exporters.OnnxConfig(dynamic=True), t.exporters.OnnxExporter()
    if SHAPES[model.name] == IMAGES:
        vit = t.AutoModelForImageClassification.from_pretrained(model).eval()
        done = exporter.export(vit, {"pixel_values": torch.zeros(2, 3, 224, 224)}, config)
    else:
        pair = t.AutoModelForSeq2SeqLM.from_pretrained(model).eval()
        ids = torch.arange(22).reshape(2, 11) + 5
        given: Any = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        done = exporter.export_for_generation(pair, given, config)
    done.save_pretrained(folder)


def by_optimum(model: Path, folder: Path) -> None:
    from optimum.exporters.onnx import main_export

    past = "" if SHAPES[model.name] == IMAGES else "-with-past"
    main_export(str(model), output=folder, task=SHAPES[model.name] + past, do_validation=False)


def exported(part: str, model: Path, reference: Path) -> dict[str, Any]:
    """Seconds and bytes of a float32 export, in this process."""
    with TemporaryDirectory(dir=OUT) as name:
        folder, scratch = Path(name) / "out", Path(name) / "scratch"
        folder.mkdir()
        scratch.mkdir()
        start = perf_counter()
        if part == "exporter":
            ours(model, folder, scratch, reference)
        else:
            {"transformers": by_transformers, "optimum": by_optimum}[part](model, folder)
        seconds = perf_counter() - start
        size = sum(path.stat().st_size for path in folder.rglob("*.onnx*"))
        import transformers

        told = {"s": seconds, "peak_rss_bytes": machine.peak_rss(), "bytes": size}
        return told | {"transformers": transformers.__version__}


def in_process(part: str, model: Path, reference: Path, optimum: Path | None) -> dict[str, Any]:
    """What an export printed, in a process of its own; of one that failed or cannot be had, why."""
    print(f"  {model.name}: export by {part}", file=sys.stderr, flush=True)
    environment = dict(os.environ)
    if part == "optimum":
        if optimum is None:
            return {"not_measured": "no --optimum FOLDER was given"}
        environment["PYTHONPATH"] = os.pathsep.join([str(optimum.resolve()), str(record.ROOT)])
    command = [sys.executable, "-m", "bench.shapes", "--part", part, str(model), str(reference)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        return {"not_measured": done.stderr.strip().splitlines()[-1][:300]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    if "--part" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--part", nargs=3)
        part, model, reference = parser.parse_args().part
        print(json.dumps(exported(part, Path(model), Path(reference))))
        return
    parser = options(__doc__)
    parser.add_argument("--optimum", type=Path, help="where optimum-onnx was installed with its own transformers")
    arguments = parser.parse_args()
    about = record.begin("shapes", THREADS)
    reports, exports = [], {}
    for shape, task in SHAPES.items():
        model, folder = checkpoint(shape), f"shapes-{shape}"
        given: dict[str, Any] = {"policy": "off"} if task == IMAGES else {"eval_tokens": TOKENS}
        text = None if task == IMAGES else arguments.text
        reports.append(measure(str(model), text, TARGETS[task], folder, shape, again=arguments.again, **given))
        reference = OUT / folder / "reference"
        exports[shape] = {part: in_process(part, model, reference, arguments.optimum) for part in PARTS}
    record.write(about, reports, {"exports": exports})


if __name__ == "__main__":
    main()
