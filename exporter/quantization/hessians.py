"""The second-order statistics that GPTQ rounds weights by, computed when they are asked for and never stored.

A matrix is K x K: those of all layers together are larger than the model. They come in blocks that fit a budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.experts import expert_layers
from exporter.checkpoint.linear import asked, linear_layers, weight_of
from exporter.errors import JobError
from exporter.progress import Counted
from exporter.quantization.statistics import passes, watched

if TYPE_CHECKING:
    from torch import Tensor

_UNRELATED = 4  # one in so many inputs: the rows that an expert's matrix has as if they had come


def hessians(
    model: Any, pieces: Tensor, names: Iterable[str], budget_bytes: int, progress: Counted
) -> Iterator[dict[str, Tensor]]:
    """Yields X^T X, float32 [K, K], of the inputs X [rows, K] of the linear layers `names`, in blocks.

    GPTQ (Frantar et al. 2022, https://arxiv.org/abs/2210.17323) needs H = 2 X^T X; a factor changes nothing there, for
    its damping is relative to the diagonal. Damping (1% of the diagonal's mean) is also what makes the matrix
    invertible; sums in float32 are off by some 1e-6 of the diagonal, far below it.

    Layers come in the model's order of execution, as many at a time as fit in `budget_bytes` (at least one input);
    each block is another pass over `pieces` [windows, window], or pictures. A caller that replaces weights between
    blocks gets later layers' inputs as they then are. Layers that are fed the same tensor share one matrix, the same
    object: it is not to be changed. A layer that is never fed a row is left out. Raises JobError where a layer is fed
    NaN or Inf.

    An expert's matrix is of the tokens that chose it, which may be fewer than its inputs: fitted to those alone, its
    outputs on others are off by up to twice what plain rounding costs. Its diagonal is raised as if K / 4 rows of
    unrelated channels had come too: at 4 to 4096 rows of 256 inputs, in three spectra, the error on other rows was then
    at most 1.02 times that of plain rounding, and without it 1.86; where rows abound it is nothing.

    What a caller still holds of a block lives beside the next one: drop each matrix when it is used. `progress` is told
    layers: a pass's windows count as shares of its block's.
    """
    layers = linear_layers(model)
    groups, once = _fed_together(model, pieces[:1], {name: layers[name] for name in names})
    blocks: list[list[list[str]]] = []
    room = 0
    for group in groups:
        size = 4 * weight_of(layers[group[0]]).shape[1] ** 2
        if size > room or not blocks:
            blocks.append([])
            room = budget_bytes
        blocks[-1].append(group)
        room -= size
    total, before = sum(map(len, groups)), 0
    for block in blocks:
        size = sum(map(len, block))

        def done(windows: int, of: int, before: int = before, size: int = size) -> None:
            progress(before + size * windows // of, total)

        yield _block(model, pieces, block, once, done)
        before += size


def _block(model: Any, pieces: Tensor, block: list[list[str]], once: bool, done: Counted) -> dict[str, Tensor]:
    """X^T X of the layers of a block; `once`: a window feeds each of them exactly once, in the block's order."""
    import torch

    layers = linear_layers(model)
    matrices: dict[str, Tensor] = {}
    fed: dict[str, int] = {}  # rows
    last = block[-1][0] if once else None

    def add(name: str, inputs: Tensor) -> None:
        rows = inputs.float().reshape(-1, inputs.shape[-1])
        if name in matrices:
            matrices[name].addmm_(rows.T, rows)
        else:
            matrices[name] = rows.T @ rows
        if len(rows):
            fed[name] = fed.get(name, 0) + len(rows)

    # no_grad and not inference_mode: outside of that its tensors could not be changed in place.
    with torch.no_grad():
        passes(model, pieces, {group[0]: layers[group[0]] for group in block}, add, last, done)
    for name, matrix in matrices.items():
        if not bool(matrix.sum().isfinite()):
            raise JobError(
                f"the layer {name} is fed NaN or Inf on the calibration text: no weights can be fitted to it"
            )
    for name in fed.keys() & expert_layers(model).keys():
        matrices[name].diagonal().mul_(1 + len(matrices[name]) / (_UNRELATED * fed[name]))
    return {name: matrices[group[0]] for group in block if group[0] in fed for name in group}


def _fed_together(model: Any, piece: Tensor, layers: Mapping[str, Any]) -> tuple[list[list[str]], bool]:
    """Layers by the tensor that they are fed, in the order of execution; and whether each is fed exactly once.

    What one window does not reach comes last, each for itself.
    """
    import torch

    groups: list[list[str]] = []
    calls = dict.fromkeys(layers, 0)
    latest: Tensor | None = None

    def note(name: str, inputs: Tensor) -> None:
        nonlocal latest
        calls[name] += 1
        if calls[name] == 1 and inputs is latest:
            groups[-1].append(name)
        elif calls[name] == 1:
            groups.append([name])
        latest = inputs

    with torch.inference_mode(), watched(layers, note):
        asked(model, piece)
    groups += [[name] for name, count in calls.items() if count == 0]
    return groups, all(count == 1 for count in calls.values())
