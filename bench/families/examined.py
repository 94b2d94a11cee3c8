"""One family, from its random checkpoint to what came out: a process of its own, for an engine may crash.

python -m bench.families.examined NAME FOLDER      prints the family's row as JSON, last of all
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from bench.families.asked import Asked, Question, questions
from bench.families.family import ASKED, CHECKED, Family
from bench.families.graph import Graph
from bench.families.known import FAMILIES
from bench.families.models import save_model
from bench.families.outcome import FAILED, GATES, REFUSED, compared, of_gates
from exporter import Job, run
from exporter.checkpoint.boundaries import find_boundaries
from exporter.checkpoint.load import read_config
from exporter.errors import ExporterError
from exporter.form import FORMS
from exporter.process import WorkerFailed
from exporter.targets import known
from exporter.targets.onnx.layout import MODEL
from exporter.types import FEATURES, Variant

_JOB: dict[str, Any] = {
    "eval_tokens": 512, "calib_tokens": 2048, "speed": False, "threads": 1, "policy": "off", "offline": True,
}  # fmt: skip


def examined(name: str, folder: Path) -> dict[str, Any]:
    """The row of a family; the folder is made anew, and holds what was exported."""
    family = FAMILIES[name]
    shutil.rmtree(folder, ignore_errors=True)
    save_model(family, folder / "model")
    config = read_config(folder / "model")
    row: dict[str, Any] = {"name": name, "architecture": family.architecture, "type": config["model_type"]}
    row |= outcomes(family, folder)
    row["refused"] = refused(config, family.task)
    return row


def refused(config: dict[str, Any], task: str) -> dict[str, str | None]:
    """Why each of CHECKED does not take a configuration, by the target; None: it takes it."""
    precisions = {target: known.BUILTIN[target].default for target in CHECKED}
    variants = [known.parse(f"{target}:{precision}", task)[0] for target, precision in precisions.items()]
    return {one.target: known.BUILTIN[one.target].check(config, task, one.precision) for one in variants}


def outcomes(family: Family, folder: Path) -> dict[str, Any]:
    """What came out for each of ASKED."""
    raised: dict[str, ExporterError] = {}

    def failed(variant: Variant, error: ExporterError) -> None:
        raised[str(variant)] = error

    try:
        report = run(Job(model=str(folder / "model"), target=ASKED, output=folder / "out", **_JOB), failed=failed)
    except ExporterError as error:
        return {column: _raised(error, "before any work") for column in ASKED}
    except Exception as error:  # noqa: BLE001  # a bug of the program: it is what this is here to find
        bug = {"outcome": FAILED, "what": f"{type(error).__name__}: {error}"[:300]}
        return {column: dict(bug) for column in ASKED}
    task = report["model"]["task"]
    asked, all_questions = reference(family, folder / "model", task)
    found = {}
    rows = [row for row in report["results"] if row["target"] == "onnx"]
    for column, row in zip(ASKED, rows, strict=True):
        variant = f"{row['target']}:{row['precision']}"
        if row["status"] != "ok":
            found[column] = _raised(raised[variant], "after work")
            continue
        graph = Graph(folder / "out" / row["path"] / MODEL)
        said = compared(graph, asked, all_questions, row["precision"] == "fp32")
        missed = of_gates(row)
        if missed:
            said |= {"outcome": GATES, "what": "; ".join(filter(None, (missed, said.get("what"))))}
        found[column] = said | {"precision": row["precision"]}
    return found


def _raised(error: ExporterError, when: str) -> dict[str, Any]:
    """A bug in a worker has a traceback, and no line of ours."""
    told = " ".join(str(error).split())
    if isinstance(error, WorkerFailed):
        return {"outcome": FAILED, "what": told[:300]}
    return {"outcome": REFUSED, "what": told, "when": when, "status": error.exit_status}


def reference(family: Family, checkpoint: Path, task: str) -> tuple[Asked, list[Question]]:
    """transformers' model of a checkpoint that save_model wrote, read again from there; and what it is asked."""
    import torch
    import transformers

    torch.set_num_threads(1)
    bare = task == FEATURES and not family.architecture.endswith("Model")
    kind = transformers.AutoModel if bare else getattr(transformers, family.architecture)
    model = kind.from_pretrained(checkpoint, dtype=torch.float32).eval()
    text = model.config.get_text_config()
    takes_segments = not family.decoder and (getattr(text, "type_vocab_size", 0) or 0) > 1
    pad = text.pad_token_id if text.pad_token_id is not None else 0
    boundaries = find_boundaries(read_config(checkpoint), task, None)
    boundary = boundaries[0].tokens if boundaries else None
    return Asked(model, FORMS[task].outputs, family.decoder), questions(
        family, text.vocab_size, pad, takes_segments, boundary
    )


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    print(json.dumps(examined(name, folder)))


if __name__ == "__main__":
    main()
