"""The table of docs/tasks.md, from the code: which precisions each target takes of each task, and why not.

    python -m bench.tasks            writes it
    python -m bench.tasks --check    says whether the page has it, and exits 3 where it does not

Nothing is measured: each target's own check is asked, of a plain model of the task.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from bench.record import ROOT
from exporter import store
from exporter.form import FORMS
from exporter.targets.known import BUILTIN
from exporter.tasks.known import TASKS
from exporter.types import Target

PAGE = ROOT / "docs" / "tasks.md"
BEGIN, END = "<!-- bench/tasks.py: begin -->\n", "<!-- bench/tasks.py: end -->\n"
EXIT_DIFFERS = 3
_DECODER: Mapping[str, Any] = {"model_type": "llama", "vocab_size": 32000}
_ENCODER: Mapping[str, Any] = {"model_type": "bert", "vocab_size": 30522}
_BOTH: Mapping[str, Any] = {
    "model_type": "t5",
    "vocab_size": 32128,
    "is_encoder_decoder": True,
    "tie_word_embeddings": False,
}
_WHISPER: Mapping[str, Any] = {"model_type": "whisper", "vocab_size": 51864, "is_encoder_decoder": True}
_SPEECH: Mapping[str, Any] = {"model_type": "wav2vec2", "vocab_size": 32}
_VISION: Mapping[str, Any] = {"model_type": "vit"}
_TOWERS: Mapping[str, Any] = {"model_type": "clip"}


def plain(task: str) -> Mapping[str, Any]:
    """The configuration of a model of a task, as far as a target's check looks at it."""
    form = FORMS[task]
    if form.inputs == "spectrogram":
        return _WHISPER
    if form.encodes:
        return _BOTH
    if form.inputs == "waveform":
        return _SPEECH
    if form.matches:
        return _TOWERS
    if form.inputs == "pixels":
        return _VISION
    return _DECODER if form.cached else _ENCODER


def refusals(target: Target, task: str) -> dict[str, str | None]:
    """Of each precision, why a target does not take a task; None: it does."""
    return {precision: target.check(plain(task), task, precision) for precision in target.precisions}


def table() -> str:
    """Markdown: a row for each task, a column for each target, the reasons below."""
    reasons: list[str] = []
    lines = [f"| task | {' | '.join(BUILTIN)} |", f"|---|{'---|' * len(BUILTIN)}"]
    for task in TASKS:
        cells = [_cell(refusals(target, task), reasons) for target in BUILTIN.values()]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))]) + "\n"


def _cell(found: Mapping[str, str | None], reasons: list[str]) -> str:
    taken = [precision for precision, reason in found.items() if reason is None]
    refused = dict.fromkeys(reason for reason in found.values() if reason is not None)
    reasons += [reason for reason in refused if reason not in reasons]
    notes = ", ".join(str(reasons.index(reason) + 1) for reason in refused)
    said = "all" if len(taken) == len(found) else ", ".join(taken) or "no"
    return f"{said} ({notes})" if notes else said


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.tasks", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    whole = f"{before}{BEGIN}{table()}{END}{rest.split(END)[1]}"
    if asked.check and whole != page:
        print("error: docs/tasks.md does not say what the code says; python -m bench.tasks writes it", file=sys.stderr)
        sys.exit(EXIT_DIFFERS)
    if not asked.check:
        store.write_text(PAGE, whole)


if __name__ == "__main__":
    main()
