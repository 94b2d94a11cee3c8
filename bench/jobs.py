"""The real models that are measured, and how one job on one of them is run."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import record
from exporter import Job, run

OUT = record.ROOT / "out" / "bench"
DECODER = "smollm2-135m"
ENCODER = "all-minilm-l6-v2"
TOKENS, THREADS = 8192, 2
CALIBRATED = 32768  # tokens


def options(description: str | None) -> argparse.ArgumentParser:
    """The command line of a program that measures on a text."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--again", action="store_true", help="measure what is in out/bench again; build what is not")
    return parser


def progress(what: str, done: int, total: int) -> None:
    print(f"\r  {what} {done}/{total}".ljust(70), end="", file=sys.stderr, flush=True)


def measure(
    model: str,
    text: Path | None,
    targets: tuple[str, ...],
    folder: str,
    label: str,
    *,
    again: bool = False,
    **given: Any,
) -> dict[str, Any]:
    """What a result keeps of one whole job in out/bench/`folder`; `given` are more fields of the job.

    `again`: on the folder as it is, whose artifacts are used where they are the same, and measured anew.
    """
    if not again:
        shutil.rmtree(OUT / folder, ignore_errors=True)
    print(f"{folder}: {', '.join(targets)}", file=sys.stderr)
    fields: Mapping[str, Any] = {
        "model": model, "target": targets, "eval_text": text, "eval_tokens": TOKENS, "threads": THREADS, **given,
    }  # fmt: skip
    report = run(
        Job(output=OUT / folder, **fields),
        progress,
        lambda variant, error: print(f"\n  {variant}: {error}", file=sys.stderr),
    )
    return record.report(report, label, fields)


def second_half(text: Path) -> Path:
    """A file to calibrate on: of a text whose first tokens are measured on, other articles of the same kind."""
    whole, file = text.read_text(encoding="utf-8"), OUT / "calibration.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(whole[len(whole) // 2 :], encoding="utf-8")
    return file
