"""One pass over calibration text through the float model: what its linear layers are fed.

For each linear layer: the sum of squares of every input column, in float64. The folder holds squares.safetensors
(float64 [columns] by the module's name) and calibration.json (text, tokens, windows, window).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter import machine, store
from exporter.errors import JobError
from exporter.types import Checkpoint

if TYPE_CHECKING:
    from exporter.plan import Plan
    from exporter.process import Progress, Worker

WINDOW = 512


def calibrated(plan: Plan, checkpoint: Checkpoint, worker: Worker, progress: Progress) -> Path | None:
    """The parent's side: the folder of the statistics that a plan wants, in the cache under its content key."""
    if plan.calibration is None:
        return None
    progress("calibrating", 0, 0)
    how = plan.calibration_text()
    key = store.content_key(["calibration", checkpoint.sha256, checkpoint.task, how, machine.versions()])
    folder = store.cache_folder() / "calibrations" / key
    worker("calibrate", checkpoint=asdict(checkpoint), folder=folder, key=key, threads=plan.job.threads, **how)
    return folder


def calibrate(
    checkpoint: Checkpoint,
    folder: Path,
    key: str,
    threads: int,
    progress: Callable[[int, int], None],
    *,
    name: str,
    text: str,
    tokens: int,
    skip: int,
    max_length: int | None,
) -> dict[str, Any]:
    """The worker's side. Publishes the statistics' folder, unless it is there under the same key; returns its manifest.

    The `tokens` after the first `skip` of the text are read, in windows of at most WINDOW. Raises JobError.
    """
    if (manifest := store.reusable(folder, key)) is not None:
        return manifest
    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    from exporter.targets.torch import load_model

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=checkpoint.trust_remote_code)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][skip : skip + tokens]
    window = min(WINDOW, max_length or WINDOW)
    pieces = [ids[begin : begin + window] for begin in range(0, len(ids) - len(ids) % window, window)]
    if not pieces:
        raise JobError(f"the calibration text {name} has {len(ids)} tokens, fewer than a window of {window}: give more")
    model = load_model(checkpoint.path, checkpoint.task, "float32", checkpoint.trust_remote_code).eval()
    squares = collect(model)
    with torch.inference_mode():
        for done, piece in enumerate(pieces):
            model(input_ids=torch.tensor([piece]))
            progress(done + 1, len(pieces))
    store.sweep(folder.parent)
    about = {"text": name, "tokens": len(pieces) * window, "windows": len(pieces), "window": window}
    with store.publish(folder) as building:
        save_file({module: sums.contiguous() for module, sums in squares.items()}, building / "squares.safetensors")
        (building / "calibration.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        return store.write_manifest(building, key, [], about)


def collect(model: Any) -> dict[str, Any]:
    """Hooks every linear layer; the returned dictionary fills with float64 [columns] sums of squares by module name."""
    import torch
    from transformers.pytorch_utils import Conv1D

    squares: dict[str, Any] = {}

    def hook(name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def add(module: Any, inputs: tuple[Any, ...]) -> None:
            rows = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
            # A square's rounding to float32 is nothing; a long sum in it would lose the small terms.
            sums = rows.square().sum(0, dtype=torch.float64)
            squares[name] = squares[name] + sums if name in squares else sums

        return add

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D):
            module.register_forward_pre_hook(hook(name))
    return squares
