"""SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774): weights become 0, and the others make good the error.

A column is masked, and what that did to the layer's output on calibration text is taken back as far as the columns
behind it can. The Hessian X^T X of the layer's inputs says how, and what a weight is worth: w^2 / [H^-1]_jj, of the
inverse that leaves out the columns before. Which go is chosen for BLOCK columns at a time over all rows together, so
that a row may lose more than another; for 2:4, four columns at a time in each row, as corrected until then. Columns
keep their order: fours are neighbours. The paper also sets to 0 what an input channel that never fired reads; here such
weights are worth next to nothing and go first, and the count stays exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from exporter.errors import BuildError
from exporter.progress import Counted, nobody
from exporter.quantization.compensation import BLOCK, compensated, damping_of, inverse_factor
from exporter.stages.prune.masks import keep_2_of_4, keep_largest, share_of

if TYPE_CHECKING:
    from torch import Tensor


def prune_and_compensate(
    weights: Mapping[str, Tensor],
    hessians: Iterable[dict[str, Tensor]],
    share: float | None,
    progress: Counted = nobody,
) -> list[str]:
    """Prunes float32 weights [N, K] in place as their Hessians [K, K] come, which it empties; the layers pruned.

    In each layer share_of(share, N * K) weights become 0, or None: two of four. Where `hessians` makes a later batch
    after an earlier one was pruned, as exporter.quantization.hessians does, later layers make good what the earlier
    ones do to their inputs. Raises BuildError for NaN or Inf in a Hessian, and where one cannot be inverted.
    """
    done: list[str] = []
    for batch in hessians:
        for name in _pruned(weights, batch, share):
            done.append(name)
            progress(len(done), len(weights))
        batch.clear()  # while the next is made: else two would be there at a time
    progress(len(weights), len(weights))  # with those that nothing feeds
    return done


def _pruned(weights: Mapping[str, Tensor], batch: Mapping[str, Tensor], share: float | None) -> Iterator[str]:
    known: tuple[Tensor, Tensor] | None = None  # a Hessian and its factor: q, k and v have one
    for name, hessian in batch.items():
        if name not in weights:
            continue
        if known is None or known[0] is not hessian:
            known = (hessian, _factor(name, hessian))
        weights[name].copy_(sparsegpt(weights[name], known[1], share))
        yield name


def sparsegpt(weight: Tensor, factor: Tensor, share: float | None) -> Tensor:
    """A finite float32 weight [N, K], pruned; `factor` [K, K] is that of its inputs' damped X^T X.

    The factor is exporter.quantization.compensation.inverse_factor's. For 2:4 K is a multiple of 4.
    """
    import torch

    rows = len(weight)
    span = 4 if share is None else BLOCK
    size = factor.diagonal()[:, None]  # its square is [H^-1]_jj without the columns before
    keep = torch.empty(0)

    def settle(place: int, rest: Tensor) -> Tensor:
        nonlocal keep
        if place % span == 0:
            scores = rest[:span].abs() / size[place : place + span]
            if share is None:
                keep = keep_2_of_4(scores.T).T
            else:  # counted from the first column, so that what blocks round off does not add up
                end = share_of(share, rows * (place + len(scores)))
                [keep] = keep_largest([scores], end - share_of(share, rows * place))
        return rest[0].where(keep[place % span], 0.0)

    return compensated(weight.T.clone(memory_format=torch.contiguous_format), factor, settle).T


def _factor(name: str, hessian: Tensor) -> Tensor:
    if not hessian.isfinite().all():
        raise BuildError(f"{name} is fed NaN or Inf on the calibration text: nothing can be pruned by it")
    try:
        return inverse_factor(hessian, damping_of(hessian))
    except BuildError as error:
        raise BuildError(f"{name}: {error}") from error
