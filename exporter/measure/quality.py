"""Quality of an artifact against the reference, on the same token ids.

Perplexity slides a window over the text: each token is scored once, with as much left context as the window allows.
The ratio to the reference is exp(mean difference of the negative log-likelihoods), and its standard error is that of
the paired differences: what both models find hard cancels out. KL is KL(reference || artifact) in nats over the
reference's TOP_K most likely tokens plus one bucket for the rest; merging outcomes never raises a divergence, so it is
a lower bound.
Encoders are compared by the cosine of mean-pooled last hidden states, classifiers as measure/classification.py says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import BuildError, JobError
from exporter.measure.arithmetic import Doubles, exponential, mean
from exporter.report.result import Figure
from exporter.runner import EncoderDecoderRunner, Floats, Ids, Runner, Sample
from exporter.types import CLASSIFICATION, Probe

Progress = Callable[[int, int], None]  # (done, total) windows
ANSWERS = "reference.npz"  # in the folder of the reference
Pool = Callable[[Floats], Floats]  # a text's last hidden states [T, H] to its vector [D]


@dataclass(frozen=True)
class Passages:
    """The evaluation's token ids: one long text for generation, passages with their special tokens for encoders.

    `ids` is [N]; `offsets` [passages + 1] are where each passage starts in it. A generation text is one passage. Of
    pictures `ids` are the pixel values float32 [N, H, W], the channels of one after those of another; a window is one.
    Of sounds they are samples float32 [N]; a window is the longest sound, and a stride a second.
    `problem_type` is a classifier's, "" of the other tasks: what is compared of it. `segments` [N] tell the two texts
    of a passage apart, where it has two and the model's tokenizer numbers them. `compared` [S] are the places in `ids`
    whose answers count, of a task that answers for each token; None: its own rule, or all. `mask_id`: fill-mask's.
    Of spectrograms `sources` are float32 [M, frames], the mel bands of one after those of another.
    `sources` [M] with `source_offsets` are what an encoder reads, of a task whose passages are the texts to be made of
    them; its decoder begins with the token `start`, or with a passage's own last one (None), as mBART was trained. Of
    pictures that are matched with texts, the sources are these texts.
    """

    task: str
    ids: Sample
    offsets: Ids
    window: int
    stride: int
    problem_type: str = ""
    segments: Ids | None = None
    compared: Ids | None = None
    mask_id: int | None = None
    sources: Sample | None = None
    source_offsets: Ids | None = None
    start: int | None = None

    def __iter__(self) -> Iterator[Sample]:
        for begin, end in zip(self.offsets[:-1], self.offsets[1:], strict=True):
            yield self.ids[begin:end]

    def source(self, number: int) -> Sample:
        """What the encoder reads of a pair."""
        assert self.sources is not None
        assert self.source_offsets is not None
        return self.sources[self.source_offsets[number] : self.source_offsets[number + 1]]

    def decoded(self, number: int) -> Ids:
        """What the decoder is given of a pair: at each place the token before the one that it is asked for."""
        ids = self.ids[self.offsets[number] : self.offsets[number + 1]]
        return np.append(ids[-1] if self.start is None else self.start, ids[:-1]).astype(np.int64)

    def longest(self) -> tuple[Sample | None, Sample]:
        """The source (None: the task has none) and the ids of the longest text that is evaluated."""
        number = int(np.diff(self.offsets).argmax())
        if self.sources is None or self.ids.ndim > 1:
            return None, self.ids[self.offsets[number] : self.offsets[number + 1]][: self.window]
        return self.source(number), self.decoded(number)


@dataclass(frozen=True)
class Answers:
    """What the reference said; it travels with the artifacts, so that they can be measured where torch is not.

    Generation: `nll` float64 [S], S the scored ids, N - 1 where windows overlap; `top_ids` int32 and `top_logp` float32
    [S, k], `rest_logp` float32 [S], natural logarithms. Encoders: `vectors` float32 [passages, H] (classification:
    logits [passages, C]). Of sounds `vectors` are the logits [frames, V], and `bounds` [sounds + 1] where each one's
    frames begin. `towers` float32 [pictures + texts, D]: of pictures that are matched with texts, the vectors behind
    those logits. None: the task has none.
    """

    nll: Doubles
    top_ids: NDArray[np.int32]
    top_logp: Floats
    rest_logp: Floats
    vectors: Floats
    bounds: Ids | None = None
    towers: Floats | None = None


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
            compared=np.zeros(0, np.int64) if p.compared is None else p.compared,
            mask_id=np.array(-1 if p.mask_id is None else p.mask_id),
            probe_ids=q.ids,
            probe_mask=q.mask,
            probe_answers=q.answers,
            probe_alone=np.zeros(0, np.float32) if q.alone is None else q.alone,
            **_pairs(p, q),
            **{name: value for name, value in vars(a).items() if value is not None},
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
            pairs = {name: data[name] for name in ("sources", "source_offsets") if name in data}
            probed = {name: data[f"probe_{name}"] for name in ("sources", "source_mask") if f"probe_{name}" in data}
            start = int(data["start"]) if "start" in data and data["start"] >= 0 else None
            segments, compared = (
                data[name] if name in data and len(data[name]) else None for name in ("segments", "compared")
            )
            mask = int(data["mask_id"]) if "mask_id" in data and data["mask_id"] >= 0 else None
            about = (window, stride, problem, segments, compared, mask)
            return cls(
                Passages(str(data["task"]), data["ids"], data["offsets"], *about, **pairs, start=start),
                Probe(data["probe_ids"], data["probe_mask"], data["probe_answers"], alone, **probed),
                Answers(**{name: data[name] for name in Answers.__dataclass_fields__ if name in data}),
            )


def _pairs(passages: Passages, probe: Probe) -> dict[str, Any]:
    """What the file of a task with sources has beside the others'."""
    if passages.sources is None:
        return {}
    start = np.array(-1 if passages.start is None else passages.start)
    told = {"sources": passages.sources, "source_offsets": passages.source_offsets, "start": start}
    return told | {"probe_sources": probe.sources, "probe_source_mask": probe.source_mask}


class NotFinite(BuildError):
    """An artifact answered NaN or infinity; `ids` [T] are the tokens, the picture or the sound that it did so on."""

    def __init__(self, ids: Sample, out: Floats) -> None:
        odd = out[~np.isfinite(out)]
        asked = f"{len(ids)} tokens" if ids.dtype.kind == "i" else "a sound" if ids.ndim == 1 else "a picture"
        super().__init__(f"it answers {odd[0]}: {odd.size} of {out.size} values for {asked} are no numbers")
        self.ids = ids


def checked(runner: Runner, ids: Sample) -> Floats:
    """The answer to [T] ids. Raises NotFinite; -inf may stand in the place of a token that is ruled out."""
    return finite(ids, runner.logits(ids))


def finite(ids: Sample, out: Floats) -> Floats:
    """The answer to [T] ids, as it is; raises as above."""
    if np.isnan(out).any() or np.isposinf(out).any() or not np.isfinite(out).any(axis=-1).all():
        raise NotFinite(ids, out)
    return out


def encoded(runner: Runner, source: Ids) -> Floats:
    """The encoder's states [S, H] of a source, of which the decoder is asked then. Raises NotFinite."""
    if not isinstance(runner, EncoderDecoderRunner):
        raise BuildError(f"{runner.engine} has no encoder to read a source with")
    return finite(source, runner.encode(source))


def answered(runner: Runner, source: Ids | None, ids: Ids) -> Floats:
    """The answer to [T] ids, after a source where the task has one."""
    if source is not None:
        encoded(runner, source)
    return checked(runner, ids)


def mean_pooled(states: Floats) -> Floats:
    """Of [T, H]: what is compared where no model says how it pools."""
    vector: Floats = states.mean(axis=0)
    return vector


def reference_perplexity(answers: Answers) -> Figure:
    """Perplexity of the reference; without a value for a task that has none."""
    return exponential(*mean(answers.nll)) if len(answers.nll) else Figure()
