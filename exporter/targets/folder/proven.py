"""A float form held against its checkpoint once, before anything is quantized of it.

What a quantized artifact has wrong of its own and what it has from the float form cannot be told apart afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from exporter.checkpoint.opened import open_checkpoint
from exporter.errors import BuildError, one_line
from exporter.form import FORMS
from exporter.measure.arithmetic import divergence_of, log_softmax, top_of
from exporter.measure.lengths import LENGTHS, Lengths, compare_lengths, told_of
from exporter.measure.probe import sources_of, together
from exporter.measure.quality import ANSWERS, Reference, answered, mean_pooled
from exporter.runner import Floats, Runner
from exporter.store import read_manifest
from exporter.types import ExportRequest, Probe


@dataclass(frozen=True)
class Tolerance:
    """How far a float form may be off; limits.py makes the gates of an artifact of that form from it.

    `kl` in nats, of generation; `cosine` of pooled states, at least; `error` of a classifier's logits, of the largest
    where that is more than 1; `each`: the same of other tasks' logits or states, None where KL or cosine judge alone.
    """

    kl: float
    cosine: float
    error: float
    each: float | None = None


FLOAT32 = Tolerance(kl=1e-4, cosine=0.9999, error=1e-3, each=1e-3)
FLOAT16 = Tolerance(kl=1e-3, cosine=0.999, error=0.01)


def prove_once(said: Path, request: ExportRequest, what: str, wrong: Callable[[Path], str | None]) -> None:
    """Raises BuildError where `what`, such as "float graph", does not agree with the reference.

    `wrong` says in words what does not, from the reference's folder; None: it agrees. What came out is kept in `said`,
    in the run's scratch folder, and not asked for again. Without a reference there is nothing to compare with.
    """
    if request.reference is None:
        return
    if not said.is_file():
        request.progress(f"proving the {what}", 0, 0)
        said.write_text(json.dumps(wrong(request.reference)), encoding="utf-8")
    if (found := json.loads(said.read_text(encoding="utf-8"))) is not None:
        raise disagrees(what, found)


def prove_program(
    file: Path, request: ExportRequest, what: str, opened: Callable[[Path, str, int], Runner], allowed: Tolerance
) -> None:
    """Raises BuildError where a program does not answer as the request's checkpoint does, also beyond its boundaries.

    `opened` opens one, by its file, task and threads; `allowed` is that of the program's own numbers. Compared once for
    a file: what came out stands beside it.
    """
    wrong = partial(_program_disagrees, file, request, what, opened, allowed)
    prove_once(file.with_name("proof.json"), request, what, wrong)


def _program_disagrees(
    file: Path,
    request: ExportRequest,
    what: str,
    opened: Callable[[Path, str, int], Runner],
    allowed: Tolerance,
    folder: Path,
) -> str | None:
    task = request.checkpoint.task
    _, probe, lengths = expected(request, folder)
    try:
        return float_disagrees(partial(opened, file, task, request.threads), probe, lengths, task, allowed)
    except Exception as error:  # whatever an engine raises of a program that it does not take
        raise disagrees(what, one_line(error)) from error


def disagrees(what: str, wrong: str) -> BuildError:
    return BuildError(f"its {what} does not agree with the reference ({wrong}); nothing was quantized")


def expected(request: ExportRequest, folder: Path) -> tuple[Reference, Probe, Lengths]:
    """The reference of its folder, and what the request's own checkpoint answers to its probe and at its lengths.

    Where the checkpoint is not the reference (it was pruned, trained, or rounded already), it is run itself, by torch.
    """
    checkpoint, task = request.checkpoint, request.checkpoint.task
    reference, lengths = Reference.load(folder / ANSWERS), Lengths.load(folder / LENGTHS)
    if (read_manifest(folder) or {}).get("model_sha256") == checkpoint.sha256:
        return reference, reference.probe, lengths
    opened = partial(open_checkpoint, checkpoint.path, task, request.threads, trust=checkpoint.trust_remote_code)
    probe = reference.probe
    with opened() as model:
        probe = replace(probe, answers=together(model, probe), alone=None)
    told = tuple(told_of(opened, one.length, task) for one in lengths.told)
    return reference, probe, Lengths(lengths.window, told, lengths.unproven)


def drifted(opened: Callable[[], Runner], lengths: Lengths, task: str) -> str | None:
    """How a form is further off beyond a boundary than below it, in words; None: nowhere."""
    drift = compare_lengths(opened, lengths, task, lambda done, total: None)[1]
    return drift.detail if (drift.value or 0.0) > 1 else None


def float_disagrees(
    opened: Callable[[], Runner], probe: Probe, lengths: Lengths, task: str, allowed: Tolerance
) -> str | None:
    """How a float form is off the probe's answers or beyond a boundary, in words; None: it is not."""
    with opened() as runner:
        wrong = _off_probe(runner, probe, task, allowed)
    return drifted(opened, lengths, task) if wrong is None else wrong


def _off_probe(runner: Runner, probe: Probe, task: str, allowed: Tolerance) -> str | None:
    """None: as little as its numbers explain. Each sequence without its padding, for an engine may know none."""
    answers = probe.answers if probe.alone is None else probe.alone
    lengths = probe.mask.sum(axis=1)
    asked = [(row[:length], whole[:length]) for row, length, whole in zip(probe.ids, lengths, answers, strict=True)]
    if not FORMS[task].per_token:
        asked = [(ids, whole[None]) for (ids, _), whole in zip(asked, answers, strict=True)]
    with_sources = zip(sources_of(probe), asked, strict=True)
    pairs = [(expected, answered(runner, source, ids)) for source, (ids, expected) in with_sources]
    if FORMS[task].answers == "vocabulary":
        parts = [divergence_of(top_of(log_softmax(expected)), log_softmax(got)) for expected, got in pairs]
        kl = float(np.concatenate(parts).mean())
        if not kl <= allowed.kl:
            return f"KL {kl:.2g} nats on the probe"
    elif FORMS[task].answers == "classes":
        return _largest_off(pairs, allowed.error)
    else:
        cosine = float(np.mean([_cosine(*pair) for pair in pairs]))
        if not cosine >= allowed.cosine:
            return f"cosine {cosine:.6f} on the probe"
    return None if allowed.each is None else _largest_off(pairs, allowed.each)


def _largest_off(pairs: Sequence[tuple[Floats, Floats]], allowed: float) -> str | None:
    """-inf, of a token that is ruled out, is right where it stands in both."""
    unlike = [(expected[expected != got], got[expected != got]) for expected, got in pairs]
    error = max(float(np.abs(expected - got).max(initial=0.0)) for expected, got in unlike)
    largest = max(float(np.abs(expected[np.isfinite(expected)]).max(initial=1.0)) for expected, _ in pairs)
    return f"error {error:.2g} on the probe" if not error <= allowed * largest else None


def _cosine(expected: Floats, got: Floats) -> float:
    # Of a text [T, H], of a picture [1, P, H].
    a, b = (mean_pooled(states.reshape(-1, states.shape[-1])).astype(np.float64) for states in (expected, got))
    return float(a @ b) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30)
