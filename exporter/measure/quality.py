"""Quality of an artifact against the reference, on the same token ids.

Perplexity slides a window over the text: each token is scored once, with as much left context as the window allows.
The ratio to the reference is exp(mean difference of the negative log-likelihoods), and its standard error is that of
the paired differences: what both models find hard cancels out. KL is KL(reference || artifact) in nats over the
reference's TOP_K most likely tokens plus one bucket for the rest; merging outcomes never raises a divergence, so it is
a lower bound.
Encoders are compared by the cosine of mean-pooled last hidden states, classifiers as measure/classification.py says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import BuildError, JobError
from exporter.measure.arithmetic import Doubles, divergence, divergence_of, log_softmax, mean, top_of
from exporter.measure.classification import compare_answers
from exporter.report.result import Figure
from exporter.runner import Floats, Ids, Runner, SegmentRunner
from exporter.types import CLASSIFICATION, GENERATION, Probe

Progress = Callable[[int, int], None]  # (done, total) windows
ANSWERS = "reference.npz"  # in the folder of the reference
Pool = Callable[[Floats], Floats]  # a text's last hidden states [T, H] to its vector [D]
_LARGEST = 700  # nats: beyond them a perplexity is no float64


@dataclass(frozen=True)
class Passages:
    """The evaluation's token ids: one long text for generation, passages with their special tokens for encoders.

    `ids` is [N]; `offsets` [passages + 1] are where each passage starts in it. A generation text is one passage.
    `problem_type` is a classifier's, "" of the other tasks: what is compared of it. `segments` [N] tell the two texts
    of a passage apart, where it has two and the model's tokenizer numbers them.
    """

    task: str
    ids: Ids
    offsets: Ids
    window: int
    stride: int
    problem_type: str = ""
    segments: Ids | None = None

    def __iter__(self) -> Iterator[Ids]:
        for begin, end in zip(self.offsets[:-1], self.offsets[1:], strict=True):
            yield self.ids[begin:end]


@dataclass(frozen=True)
class Answers:
    """What the reference said; it travels with the artifacts, so that they can be measured where torch is not.

    Generation: `nll` float64 [S], S the scored ids, N - 1 where windows overlap; `top_ids` int32 and `top_logp` float32
    [S, k], `rest_logp` float32 [S], natural logarithms. Encoders: `vectors` float32 [passages, H] (classification:
    logits [passages, C]).
    """

    nll: Doubles
    top_ids: NDArray[np.int32]
    top_logp: Floats
    rest_logp: Floats
    vectors: Floats


@dataclass(frozen=True)
class Reference:
    """Everything that a comparison needs, as one .npz file (a few megabytes for some thousand tokens)."""

    passages: Passages
    probe: Probe
    answers: Answers

    def save(self, path: Path) -> None:
        p, q, a = self.passages, self.probe, self.answers
        np.savez(
            path,
            task=np.array(p.task),
            problem_type=np.array(p.problem_type),
            ids=p.ids,
            offsets=p.offsets,
            sliding=np.array([p.window, p.stride]),
            segments=np.zeros(0, np.int64) if p.segments is None else p.segments,
            probe_ids=q.ids,
            probe_mask=q.mask,
            probe_answers=q.answers,
            probe_alone=np.zeros(0, np.float32) if q.alone is None else q.alone,
            **{name: getattr(a, name) for name in Answers.__dataclass_fields__},
        )

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Raises JobError for a classifier's of an exporter that compared every one by its softmax."""
        with np.load(path, allow_pickle=False) as data:
            if str(data["task"]) == CLASSIFICATION and "problem_type" not in data:
                raise JobError(f"{path} does not say what the classifier's answers mean: run the job again")
            problem = str(data["problem_type"]) if "problem_type" in data else ""
            window, stride = (int(value) for value in data["sliding"])
            alone = data["probe_alone"] if "probe_alone" in data and data["probe_alone"].size else None
            segments = data["segments"] if "segments" in data and len(data["segments"]) else None
            return cls(
                Passages(str(data["task"]), data["ids"], data["offsets"], window, stride, problem, segments),
                Probe(data["probe_ids"], data["probe_mask"], data["probe_answers"], alone),
                Answers(**{name: data[name] for name in Answers.__dataclass_fields__}),
            )


class NotFinite(BuildError):
    """An artifact answered NaN or infinity; `ids` [T] are the tokens that it did so on."""

    def __init__(self, ids: Ids, out: Floats) -> None:
        odd = out[~np.isfinite(out)]
        super().__init__(f"it answers {odd[0]}: {odd.size} of {out.size} values for {len(ids)} tokens are no numbers")
        self.ids = ids


def _checked(runner: Runner, ids: Ids) -> Floats:
    """The answer to [T] ids. Raises NotFinite; -inf may stand in the place of a token that is ruled out."""
    return finite(ids, runner.logits(ids))


def finite(ids: Ids, out: Floats) -> Floats:
    """The answer to [T] ids, as it is; raises as above."""
    if np.isnan(out).any() or np.isposinf(out).any() or not np.isfinite(out).any(axis=-1).all():
        raise NotFinite(ids, out)
    return out


def windows(tokens: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, end, first scored) for each window over `tokens` token ids; every token but the first is scored once.

    Where windows do not overlap (a stride of a whole window) none scores its first token: nothing stands before it.
    """
    scored = 1
    for begin in range(0, tokens, stride):
        end, first = min(begin + window, tokens), max(scored, begin + 1)
        if first < end:
            yield begin, end, first
            scored = end


def _scored(runner: Runner, passages: Passages, progress: Progress) -> Iterator[tuple[slice, Floats, Ids]]:
    """For each window: its span in the result arrays, the log-probabilities there [n, V], and the tokens that came."""
    spans = list(windows(len(passages.ids), passages.window, passages.stride))
    start = 0
    for done, (begin, end, first) in enumerate(spans):
        logits = _checked(runner, passages.ids[begin:end])
        yield (
            slice(start, start + end - first),
            log_softmax(logits[first - 1 - begin : end - 1 - begin]),
            passages.ids[first:end],
        )
        start += end - first
        progress(done + 1, len(spans))


def mean_pooled(states: Floats) -> Floats:
    """Of [T, H]: what is compared where no model says how it pools."""
    vector: Floats = states.mean(axis=0)
    return vector


def pooled(runner: Runner, ids: Ids, task: str, segments: Ids | None = None, pool: Pool = mean_pooled) -> Floats:
    """A passage as one vector: its last hidden states pooled [H], or a classifier's logits [C]."""
    out = _checked(runner, ids) if segments is None else finite(ids, _segmented(runner, ids, segments))
    vector: Floats = out[0] if task == CLASSIFICATION else pool(out)
    return vector


def _segmented(runner: Runner, ids: Ids, segments: Ids) -> Floats:
    if not isinstance(runner, SegmentRunner):
        raise BuildError(f"{runner.engine} cannot be told which of two texts a token is of: pairs need that here")
    return runner.segmented(ids, segments)


def passage_vectors(runner: Runner, passages: Passages, progress: Progress, pool: Pool = mean_pooled) -> Floats:
    """Each passage's vector [passages, H], or a classifier's logits [passages, C]."""
    count = len(passages.offsets) - 1
    vectors = []
    for done, (begin, end) in enumerate(pairwise(passages.offsets)):
        segments = None if passages.segments is None else passages.segments[begin:end]
        vectors.append(pooled(runner, passages.ids[begin:end], passages.task, segments, pool))
        progress(done + 1, count)
    return np.stack(vectors)


def answer(runner: Runner, passages: Passages, progress: Progress, pool: Pool = mean_pooled) -> Answers:
    """The reference's answers over all passages."""
    none = np.zeros((0, 0), np.float32)
    if passages.task != GENERATION:
        vectors = passage_vectors(runner, passages, progress, pool)
        return Answers(np.zeros(0), none.astype(np.int32), none, none, vectors)
    nll: list[Doubles] = []
    top_ids: list[Any] = []
    top_logp: list[Any] = []
    rest: list[Any] = []
    for _, logp, tokens in _scored(runner, passages, progress):
        nll.append(-_at(logp, tokens))
        for column, part in zip((top_ids, top_logp, rest), top_of(logp), strict=True):
            column.append(part)
    return Answers(np.concatenate(nll), np.concatenate(top_ids), np.concatenate(top_logp), np.concatenate(rest), none)


def _at(logp: Floats, tokens: Ids) -> Doubles:
    return np.take_along_axis(logp, tokens[:, None], -1)[:, 0].astype(np.float64)


def compare(runner: Runner, reference: Reference, progress: Progress = lambda done, total: None) -> dict[str, Figure]:
    """Every figure of a row's quality that this task has, by its name there."""
    passages, answers = reference.passages, reference.answers
    if passages.task != GENERATION:
        return compare_vectors(passages, answers.vectors, passage_vectors(runner, passages, progress))
    count = len(answers.nll)
    nll, kl, agree = np.empty(count), np.empty(count), np.empty(count)
    for span, logp, tokens in _scored(runner, passages, progress):
        nll[span] = -_at(logp, tokens)
        top = answers.top_ids[span]
        kl[span] = divergence_of((top, answers.top_logp[span], answers.rest_logp[span]), logp)
        agree[span] = logp.argmax(-1) == top[:, 0]
    return {
        "ppl": _exponential(nll),
        "ppl_ratio": _exponential(nll - answers.nll),
        "kl": divergence(kl),
        "top1": Figure(*mean(agree)),
    }


def _exponential(nll: Doubles) -> Figure:
    """exp of a mean, and its standard error to first order."""
    value, se = mean(nll)
    ratio = math.exp(value) if value < _LARGEST else math.inf
    return Figure(ratio, ratio * se)


def compare_vectors(passages: Passages, expected: Floats, got: Floats) -> dict[str, Figure]:
    """Of [passages, H] or [passages, C]."""
    if passages.task == CLASSIFICATION:
        return compare_answers(passages.problem_type, expected, got)
    a, b = expected.astype(np.float64), got.astype(np.float64)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosine, se = mean((a * b).sum(-1) / np.maximum(lengths, 1e-30))
    return {"cosine": Figure(min(cosine, 1.0), se)}


def reference_perplexity(answers: Answers) -> Figure:
    """Perplexity of the reference; without a value for a task that has none."""
    return _exponential(answers.nll) if len(answers.nll) else Figure()
