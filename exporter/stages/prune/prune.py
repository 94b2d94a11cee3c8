"""Prunings one after the other: Checkpoint in, an ordinary checkpoint out, with zeros in it or smaller shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.folder import carry
from exporter.checkpoint.model import Load
from exporter.checkpoint.saving import save_float32
from exporter.stages.prune.options import Pruning
from exporter.stages.prune.rebuilt import parameters_of

if TYPE_CHECKING:
    from torch import Tensor

Step = Callable[[str], Callable[[int, int], None]]  # a step's name to what is told of its progress


def prune(
    load: Load, base: Path, prunings: Sequence[Pruning], windows: Tensor | None, folder: Path, step: Step
) -> dict[str, Any]:
    """Prunes the model of `base` and saves it in float32 into an empty folder.

    `windows` int64 [windows, window]: the text that calibrates, where one of the prunings needs it. Each later one sees
    what the earlier ones left. Returns history (a line for each) and record (for the report: what each did, and the
    parameters before and after). Raises BuildError for a model that cannot be pruned so, and for one that is not the
    same when it is loaded again.
    """
    model = load(base).eval()
    before = parameters_of(model)
    carry(base, [], folder)
    done = [_pruned(model, one, windows, folder, step(f"pruning {one}")) for one in prunings]
    save_float32(model, base, load, folder, "pruned")
    history = [line for one in done for line in one.pop("history")]
    record = {"steps": done, "parameters_before": before, "parameters_after": parameters_of(model)}
    return {"history": history, "record": record}


def _pruned(
    model: Any, pruning: Pruning, windows: Tensor | None, folder: Path, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Changes the model in place, and the tokenizer in `folder`; what was done, as plain data, with a history."""
    from exporter.stages.prune.depth import prune_depth
    from exporter.stages.prune.heads import prune_heads
    from exporter.stages.prune.sparse import prune_to_zeros
    from exporter.stages.prune.vocabulary import prune_vocabulary
    from exporter.stages.prune.width import prune_width

    if pruning.file is not None:
        made = prune_vocabulary(model, folder, pruning.file.read_text(encoding="utf-8"), folder)
        return {name: value for name, value in made.items() if name != "kept"}  # which would be the largest part
    if pruning.how.kind == "zeros":
        done = prune_to_zeros(model, pruning, windows, progress)
        line = f"pruned {pruning}: {done['share']:.1%} of the weights of {len(done['layers'])} linear layers are 0"
        return {**done, "history": [line]}
    assert windows is not None, f"{pruning} needs calibration windows"
    if pruning.layers is not None:
        return prune_depth(model, pruning.layers, windows)
    assert pruning.share is not None, f"{pruning} is no share"
    return (prune_width if pruning.method == "width" else prune_heads)(model, pruning.share, windows)
