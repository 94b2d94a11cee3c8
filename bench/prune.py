"""make bench ONLY=prune: what pruning costs, what distillation brings back, and what both buy, on real models.

    python -m bench.prune --text wiki.test.raw
    python -m bench.prune --text wiki.test.raw --row depth:3        one of them, with and without distillation
    python -m bench.prune --text wiki.test.raw --again              speed, of what lies in out/bench
    python -m bench.prune --text wiki.test.raw --row wanda:2:4 --speed-alone     beside what was measured before

The first tokens of the text are measured on; its second half, other articles of the same kind, is what pruning looks at
and what students learn on. Distillation takes some 20 minutes for each row of the decoder. Run it on an idle machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench import record
from bench.jobs import CALIBRATED, DECODER, ENCODER, OUT, THREADS, measure, options, progress, second_half
from exporter.job import CompressJob
from exporter.pipeline.compressing import compress_only

STEPS = 200
DISTILL = {"steps": STEPS, "batch": 2, "window": 256}
TARGETS = ("onnx:int8-weight", "gguf:q8_0")
PRUNINGS = ("magnitude:0.2", "magnitude:2:4", "wanda:2:4", "sparsegpt:2:4", "width:0.2", "depth:3")
STUDENT = "layers:3"
VOCABULARY = "vocabulary"
DENSE, TAUGHT, TIMED = "dense", f"{STEPS} steps", "timed"  # of labels
# An engine's speed, and a file's size, are of shapes, number formats and zeros, and these stand before the first step.
TIMED_STEPS, TIMED_TOKENS = 2, 512
# No gate judges here: these rows say what a method costs, and nobody ships the worst of them.
OPEN: dict[str, Any] = {"max_ppl_ratio": 1e6, "max_kl": 1e6, "min_top1": 0.0, "min_cosine": -1.0}


def decoder(row: str, text: Path, other: Path, again: bool, speed: bool, taught: bool) -> list[dict[str, Any]]:
    """The reports of one row: as it was pruned, and with `taught` after so many steps of distillation."""
    given: dict[str, Any] = {"calib_text": other, "calib_tokens": CALIBRATED, "speed": speed, **OPEN}
    folder = f"prune-{row.replace(':', '-')}"
    if row == DENSE:
        return [measure(DECODER, text, TARGETS, folder, row, again=again, **given)]
    given["prune"] = (row,)
    made = [measure(DECODER, text, TARGETS, folder, row, again=again, **given)]
    if not taught:
        return made
    label = f"{row}, {TAUGHT}"
    return [*made, measure(DECODER, text, TARGETS, f"{folder}-taught", label, again=again, distill=DISTILL, **given)]


def timed(row: str, text: Path, other: Path) -> list[dict[str, Any]]:
    """Size and speed alone of a row, and of what distillation gives: few tokens are evaluated, few steps taught."""
    given: dict[str, Any] = {"calib_text": other, "calib_tokens": CALIBRATED, "prune": (row,), **OPEN}
    given["eval_tokens"] = TIMED_TOKENS
    folder = f"prune-{row.replace(':', '-')}-timed"
    few = DISTILL | {"steps": TIMED_STEPS}
    return [
        measure(DECODER, text, TARGETS, folder, f"{row}, {TIMED}", **given),
        measure(DECODER, text, TARGETS, f"{folder}-taught", f"{row}, {TAUGHT}, {TIMED}", distill=few, **given),
    ]


def encoder(text: Path, other: Path, again: bool, speed: bool) -> list[dict[str, Any]]:
    """MiniLM as it is, and a student of half its layers."""
    given: dict[str, Any] = {"speed": speed, **OPEN}
    distill = {"steps": 2 * STEPS, "batch": 16, "data": other, "student": STUDENT, "save": 100}
    return [
        measure(ENCODER, text, ("onnx:fp32", "onnx:int8-dynamic"), "prune-encoder", DENSE, again=again, **given),
        measure(
            ENCODER, text, ("onnx:fp32", "onnx:int8-dynamic"), "prune-encoder-taught", STUDENT, again=again,
            distill=distill, **given,
        ),
    ]  # fmt: skip


def vocabulary(text: Path, again: bool, speed: bool) -> list[dict[str, Any]]:
    """The decoder with the tokens of the text alone, beside its rows with all: measured against itself, in float32.

    The logits of the tokens that stay are what they were (tests/test_prune_vocabulary.py).
    """
    folder = OUT / f"prune-{VOCABULARY}-checkpoint"
    if not (again and folder.is_dir()):
        fields: dict[str, Any] = {"model": DECODER, "prune": (f"{VOCABULARY}:{text}",), "output": folder, "force": True}
        compress_only(CompressJob(**fields), progress)
    its = measure(str(folder), text, TARGETS, f"prune-{VOCABULARY}", VOCABULARY, again=again, speed=speed, **OPEN)
    return [its | {"name": DECODER}]


def kept(file: Path, made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The reports that a result has already, with those that were made in their place.

    What lies on one machine's processor is compared there: of the unpruned model each processor keeps its own.
    """
    old = json.loads(file.read_text(encoding="utf-8"))["reports"] if file.is_file() else []
    cpus = {(one["name"], one["label"]): one["machine"]["cpu"] for one in reversed(old)}
    for one in made:
        cpu = one["machine"]["cpu"]
        if one["label"] == DENSE and cpus.get((one["name"], DENSE), cpu) != cpu:
            one["label"] = f"{DENSE} ({cpu})"
    new = {(one["name"], one["label"]): one for one in made}
    replaced = [new.pop((one["name"], one["label"]), one) for one in old]
    return [*replaced, *new.values()]


def main() -> None:
    parser = options(__doc__)
    rows = (DENSE, *PRUNINGS, VOCABULARY, ENCODER)
    parser.add_argument("--row", action="append", choices=rows, help="this row alone; again for more")
    parser.add_argument("--no-distill", action="store_true", help="the decoder as it was pruned, alone")
    parser.add_argument(
        "--speed-alone", action="store_true", help=f"size and speed, of students of {TIMED_STEPS} steps"
    )
    parser.add_argument("--no-speed", action="store_true", help="quality and size alone, on a machine that is busy")
    arguments = parser.parse_args()
    about = record.begin("prune", THREADS)
    other = second_half(arguments.text)
    figures = {"calibrated_tokens": CALIBRATED, "distill_steps": STEPS}
    for row in arguments.row or rows:  # each is written when it is there: the whole takes hours
        how = (arguments.again, not arguments.no_speed)
        if arguments.speed_alone:
            made = timed(row, arguments.text, other)
        elif row == VOCABULARY:
            made = vocabulary(arguments.text, *how)
        elif row == ENCODER:
            made = encoder(arguments.text, other, *how)
        else:
            made = decoder(row, arguments.text, other, *how, not arguments.no_distill)
        record.write(about, kept(record.RESULTS / "prune.json", made), figures)


if __name__ == "__main__":
    main()
