"""An artifact's full logits beside the reference's on a few short sequences, and its cache held against itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from exporter.form import FORMS
from exporter.measure.arithmetic import log_softmax
from exporter.measure.quality import answered, encoded, finite
from exporter.report.result import Figure
from exporter.runner import (
    BatchRunner,
    CachedRunner,
    EncoderDecoderRunner,
    Floats,
    Ids,
    MatchingRunner,
    PiecewiseRunner,
    Runner,
    Sample,
)
from exporter.types import Probe

_STEPPED = 8  # tokens of a whole window that are decoded one by one


def compare_probe(
    runner: Runner, probe: Probe, task: str, window: Sample | None = None, source: Ids | None = None
) -> dict[str, Figure]:
    """logit_error (absolute, the largest) on padded sequences, alone and in a batch where there is one; and cache_kl.

    `cache_kl` is the mean KL(uncached || cached) of the artifact with itself, where it has a cache: a prefill of about
    half of a sequence, then the rest token by token. It needs no reference, so quantization does not hide in it. Of
    `window` [T], the longest text that is evaluated (after `source`), only the last tokens come one by one. What a
    runner reads in pieces goes through its cache without steps too: there as much of it is asked again as is read at
    once.
    """
    lengths = probe.mask.sum(axis=1)
    sequences = [row[:length] for row, length in zip(probe.ids, lengths, strict=True)]
    probe = matched(runner, probe)
    sources = sources_of(probe)
    alone = [answered(runner, *asked) for asked in zip(sources, sequences, strict=True)]
    if not FORMS[task].per_token:
        got = runner.batch(probe.ids, probe.mask) if isinstance(runner, BatchRunner) else np.concatenate(alone)
        return {"logit_error": Figure(float(np.abs(finite(probe.ids[0], got) - probe.answers).max()))}
    padded_too = isinstance(runner, BatchRunner | EncoderDecoderRunner)
    batched = together(runner, probe) if isinstance(runner, BatchRunner | EncoderDecoderRunner) else alone
    errors = []
    for index, ids in enumerate(sequences):
        expected, padded = probe.answers[index][: len(ids)], finite(ids, batched[index][: len(ids)])
        unpadded = expected if probe.alone is None else probe.alone[index][: len(ids)]
        errors += [_largest_error(alone[index], unpadded)]
        errors += [_largest_error(padded, expected)] if padded_too else []
    figures = {"logit_error": Figure(max(errors))}
    if isinstance(runner, CachedRunner):
        asked = [*zip(sources, sequences, alone, strict=True)]
        figures["cache_kl"] = Figure(_cache_kl(runner, asked, window, source))
    return figures


def matched(runner: Runner, probe: Probe) -> Probe:
    """A probe as a runner is asked it: one that matches pictures with texts is given the texts first."""
    if isinstance(runner, MatchingRunner) and probe.sources is not None and probe.source_mask is not None:
        runner.match(probe.sources, probe.source_mask)
        return replace(probe, sources=None, source_mask=None)
    return probe


def sources_of(probe: Probe) -> list[Ids | None]:
    """Of each of the probe's sequences what the encoder reads before it."""
    if probe.sources is None or probe.source_mask is None:
        return [None] * len(probe.ids)
    lengths = probe.source_mask.sum(axis=1)
    return [row[:length] for row, length in zip(probe.sources, lengths, strict=True)]


def together(runner: BatchRunner | EncoderDecoderRunner, probe: Probe) -> Floats:
    """The answers to the probe's sequences as one padded batch."""
    if probe.sources is not None and probe.source_mask is not None and isinstance(runner, EncoderDecoderRunner):
        return runner.paired(probe.sources, probe.source_mask, probe.ids)
    probe = matched(runner, probe)
    assert isinstance(runner, BatchRunner)
    return runner.batch(probe.ids, probe.mask)


def _largest_error(got: Floats, expected: Floats) -> float:
    unlike = got != expected  # both may be -inf
    return float(np.abs(got[unlike] - expected[unlike]).max(initial=0.0))


def _cache_kl(
    runner: CachedRunner, told: Sequence[tuple[Ids | None, Ids, Floats]], window: Ids | None, source: Ids | None
) -> float:
    """The mean over sequences, each with its source and its logits, and over a window, which is answered here."""
    whole = runner.at_once if isinstance(runner, PiecewiseRunner) else None
    asked = [(of, ids[:whole], uncached[:whole], len(ids[:whole]) // 2) for of, ids, uncached in told]
    if window is not None and len(window) > _STEPPED:
        uncached, lengths = answered(runner, source, window), {len(window), len(window[:whole])}
        asked += [(source, window[:to], uncached[:to], to - _STEPPED) for to in sorted(lengths) if to > _STEPPED]
    found = []
    for of, ids, uncached, read in asked:
        if of is not None:
            encoded(runner, of)
        found.append(_from_itself(runner, ids, uncached, read))
    return float(np.mean(found))


def _from_itself(runner: CachedRunner, ids: Ids, uncached: Floats, read: int) -> float:
    """Of [T] ids, the first `read` at once."""
    cached = np.stack([runner.prefill(ids[:read]), *(runner.step(int(token)) for token in ids[read:])])
    expected, got = log_softmax(uncached[read - 1 :]), log_softmax(finite(ids, cached))
    return max(float((np.exp(expected) * (expected - got)).sum(-1).mean()), 0.0)
