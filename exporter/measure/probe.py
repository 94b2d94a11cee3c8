"""An artifact's full logits beside the reference's on a few short sequences, and its cache held against itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from exporter.form import FORMS
from exporter.measure.arithmetic import log_softmax
from exporter.measure.quality import finite
from exporter.report.result import Figure
from exporter.runner import BatchRunner, CachedRunner, Floats, Ids, PiecewiseRunner, Runner
from exporter.types import Probe

_STEPPED = 8  # tokens of a whole window that are decoded one by one


def compare_probe(runner: Runner, probe: Probe, task: str, window: Ids | None = None) -> dict[str, Figure]:
    """logit_error (absolute, the largest) on padded sequences, alone and in a batch where there is one; and cache_kl.

    `cache_kl` is the mean KL(uncached || cached) of the artifact with itself, where it has a cache: a prefill of about
    half of a sequence, then the rest token by token. It needs no reference, so quantization does not hide in it. Of
    `window` [T], the longest text that is evaluated, only the last tokens come one by one. What a runner reads in
    pieces goes through its cache without steps too: there as much of it is asked again as is read at once.
    """
    lengths = probe.mask.sum(axis=1)
    sequences = [row[:length] for row, length in zip(probe.ids, lengths, strict=True)]
    alone = [finite(ids, runner.logits(ids)) for ids in sequences]
    if not FORMS[task].per_token:
        got = runner.batch(probe.ids, probe.mask) if isinstance(runner, BatchRunner) else np.concatenate(alone)
        return {"logit_error": Figure(float(np.abs(finite(probe.ids[0], got) - probe.answers).max()))}
    together = runner.batch(probe.ids, probe.mask) if isinstance(runner, BatchRunner) else alone
    errors = []
    for index, ids in enumerate(sequences):
        expected, padded = probe.answers[index][: len(ids)], finite(ids, together[index][: len(ids)])
        unpadded = expected if probe.alone is None else probe.alone[index][: len(ids)]
        errors += [_largest_error(alone[index], unpadded)]
        errors += [_largest_error(padded, expected)] if isinstance(runner, BatchRunner) else []
    figures = {"logit_error": Figure(max(errors))}
    if isinstance(runner, CachedRunner):
        figures["cache_kl"] = Figure(_cache_kl(runner, [*zip(sequences, alone, strict=True)], window))
    return figures


def _largest_error(got: Floats, expected: Floats) -> float:
    unlike = got != expected  # both may be -inf
    return float(np.abs(got[unlike] - expected[unlike]).max(initial=0.0))


def _cache_kl(runner: CachedRunner, answered: Sequence[tuple[Ids, Floats]], window: Ids | None) -> float:
    """The mean over sequences, each with its logits, and over a window, which is answered here."""
    whole = runner.at_once if isinstance(runner, PiecewiseRunner) else None
    asked = [(ids[:whole], uncached[:whole], len(ids[:whole]) // 2) for ids, uncached in answered]
    if window is not None and len(window) > _STEPPED:
        uncached, lengths = finite(window, runner.logits(window)), {len(window), len(window[:whole])}
        asked += [(window[:to], uncached[:to], to - _STEPPED) for to in sorted(lengths) if to > _STEPPED]
    return float(np.mean([_from_itself(runner, *one) for one in asked]))


def _from_itself(runner: CachedRunner, ids: Ids, uncached: Floats, read: int) -> float:
    """Of [T] ids, the first `read` at once."""
    cached = np.stack([runner.prefill(ids[:read]), *(runner.step(int(token)) for token in ids[read:])])
    expected, got = log_softmax(uncached[read - 1 :]), log_softmax(finite(ids, cached))
    return max(float((np.exp(expected) * (expected - got)).sum(-1).mean()), 0.0)
