"""The float file held against its checkpoint, before anything is quantized from it: what llama.cpp computes otherwise
than the model's own code hides behind what few bits cost.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from exporter.measure.arithmetic import Doubles, divergence_of, log_softmax, top_of
from exporter.measure.lengths import LENGTHS, Lengths, compare_lengths
from exporter.measure.quality import ANSWERS, Reference, finite, mean_pooled
from exporter.runner import Floats
from exporter.targets.folder.proven import prove_once
from exporter.targets.gguf.runner import GgufDecoder, GgufEncoder
from exporter.types import GENERATION, ExportRequest, Probe

KL, COSINE = 1e-3, 0.999  # of float16 weights, as the gates of the float16 artifact


def prove(file: Path, request: ExportRequest) -> None:
    """Raises BuildError where the file does not answer as the reference did, also beyond the model's boundaries.

    Compared once for a file: what came out stands beside it. Without a reference there is nothing to compare with.
    """
    prove_once(file.with_suffix(".proof.json"), request, "float16 file", partial(_wrong, file, request))


def _wrong(file: Path, request: ExportRequest, folder: Path) -> str | None:
    task = request.checkpoint.task
    opened = partial(GgufDecoder if task == GENERATION else GgufEncoder, file, request.threads)
    with opened() as runner:
        wrong = _on_probe(runner, Reference.load(folder / ANSWERS).probe, task)
    if wrong is not None:
        return wrong
    drift = compare_lengths(opened, Lengths.load(folder / LENGTHS), task, lambda done, total: None)[1]
    return drift.detail if (drift.value or 0.0) > 1 else None


def _on_probe(runner: GgufDecoder | GgufEncoder, probe: Probe, task: str) -> str | None:
    """Each sequence without its padding: llama.cpp knows none."""
    answers = probe.answers if probe.alone is None else probe.alone
    lengths = probe.mask.sum(axis=1)
    asked = [(row[:length], whole[:length]) for row, length, whole in zip(probe.ids, lengths, answers, strict=True)]
    pairs = [(expected, finite(ids, runner.logits(ids))) for ids, expected in asked]
    if task == GENERATION:
        kl = float(np.concatenate([_divergence(*pair) for pair in pairs]).mean())
        return f"KL {kl:.2g} nats on the probe" if not kl <= KL else None
    cosine = float(np.mean([_cosine(*pair) for pair in pairs]))
    return f"cosine {cosine:.4f} on the probe" if not cosine >= COSINE else None


def _divergence(expected: Floats, got: Floats) -> Doubles:
    return divergence_of(top_of(log_softmax(expected)), log_softmax(got))


def _cosine(expected: Floats, got: Floats) -> float:
    a, b = (mean_pooled(states).astype(np.float64) for states in (expected, got))
    return float(a @ b) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30)
