"""Rows of what the linear layers are fed, spread over the calibration text: SmoothQuant and AWQ try factors on them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.linear import are_tokens, linear_layers, reads_pairs
from exporter.errors import BuildError
from exporter.progress import Counted, nobody
from exporter.quantization.statistics import head_of, passes

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 512


def input_rows(
    model: Any, ids: Tensor, names: Iterable[str], progress: Counted = nobody, rows: int = ROWS
) -> dict[str, Tensor]:
    """Some `rows` inputs [rows, K], float32, of each of these linear layers, spread over ids [windows, window].

    The model runs once. Layers that are fed the same tensor share theirs; one that is never fed has none. Raises
    BuildError where a layer is fed NaN or Inf.
    """
    import torch

    linear = linear_layers(model)
    tokens = ids.numel() // (2 if reads_pairs(model) else 1)  # that feed a layer: of a pair one half does
    kept: dict[str, list[Tensor]] = {}
    latest: tuple[Tensor, Tensor] | None = None  # an input and its rows: q, k and v, or gate and up, are fed one tensor

    def keep(name: str, inputs: Tensor) -> None:
        nonlocal latest
        if not inputs.numel():  # an expert that no token of this window chose
            return
        if latest is None or latest[0] is not inputs:
            whole = inputs.reshape(-1, inputs.shape[-1])
            # Each token is a row; of a picture it depends on the layer how many patches there are.
            total = tokens if are_tokens(ids) else len(whole) * len(ids)
            latest = (inputs, whole[:: max(total // rows, 1)].float().clone())
        kept.setdefault(name, []).append(latest[1])

    layers = {name: linear[name] for name in names}
    with torch.no_grad():
        passes(model, ids, layers, keep, head_of(model, layers), progress)
    latest = None
    joined: dict[tuple[int, ...], Tensor] = {}
    found: dict[str, Tensor] = {}
    for name in list(kept):
        parts = kept.pop(name)  # gone when they are joined: all of them are as large as what is returned
        key = tuple(map(id, parts))  # never another's later: parts were all made before the first went
        if key not in joined:
            joined[key] = torch.cat(parts)
        found[name] = joined[key]
        if not found[name].isfinite().all():
            raise BuildError(
                f"{name} is fed NaN or Inf on the calibration text: the model is broken, or overflows on it"
            )
    return found
