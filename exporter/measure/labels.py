"""What labelled examples say of a model: how often it is right, and how much less often the artifact is.

Figures are scikit-learn's and SciPy's. Both models answer the same examples, so that what counts is the difference
for each example: the drop of the accuracy has the paired standard error of Agresti and Min (2005, "Simple improved
confidence intervals for comparing matched proportions": half an example more in each cell, without which eight
examples that agree would prove equality) and McNemar's exact test; the others have a bootstrap over examples, of both
models at once, with a fixed seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporter.errors import MissingPackage
from exporter.measure.arithmetic import Doubles, mean
from exporter.report.result import Figure
from exporter.runner import Floats
from exporter.types import MULTI_LABEL, REGRESSION, SINGLE_LABEL

LABELS = "labels.npz"  # beside the reference's answers
TAGS, ANSWERS = "tags", "answers"  # of token classification, and of question answering
TRANSCRIPTS = "transcripts"  # of sounds: what is said in them
PAIRS = "pairs"  # of texts, with how alike they are: passages 2i and 2i + 1
MIN_EXAMPLES = 8  # fewer cannot carry a standard error that means anything
_RESAMPLES, _SEED = 500, 20_260
_TOLD = 12  # classes that got worse, by name
_CHUNK = 50  # resamples at a time: [chunk, examples] in memory

Statistic = Callable[[Doubles], Mapping[str, Doubles]]  # weights [resamples, examples] -> each figure [resamples]


@dataclass(frozen=True)
class Labels:
    """What each example is: `values` are a class's number [N], yes or no of each [N, C], or numbers [N, outputs].

    `kind` is a classifier's problem type, PAIRS with numbers [pairs, 1], TAGS with the class of each compared token
    [S], or ANSWERS with the characters [S, 2] at which each compared token begins and ends in its text. `names` are the
    classes' of a classifier. `bounds` [N + 1]: where the tokens of each example begin; `texts`: of each question its
    text and the right answers, as JSON. Both of TAGS and ANSWERS alone.
    """

    kind: str
    values: Doubles
    names: tuple[str, ...] = ()
    bounds: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        names, texts = (np.array(words, dtype=np.str_) for words in (self.names, self.texts))
        bounds = np.array(self.bounds, np.int64)
        np.savez(path, kind=np.array(self.kind), values=self.values, names=names, bounds=bounds, texts=texts)

    @classmethod
    def load(cls, path: Path) -> Labels:
        with np.load(path, allow_pickle=False) as data:
            bounds = tuple(data["bounds"].tolist()) if "bounds" in data else ()  # an older exporter's have neither
            texts = tuple(map(str, data["texts"])) if "texts" in data else ()
            return cls(str(data["kind"]), data["values"], tuple(map(str, data["names"])), bounds, texts)


def check_packages(file: Path | None = None, kind: str = "") -> None:
    """Raises MissingPackage where labelled data of a `kind` cannot be read, or scored."""
    needed = ("jiwer", "jiwer") if kind == TRANSCRIPTS else ("sklearn", "scikit-learn")
    lacks = [] if find_spec(needed[0]) else [needed[1]]
    if kind == TAGS and find_spec("seqeval") is None:
        lacks.append("seqeval")
    if file is not None and file.suffix == ".parquet" and find_spec("pyarrow") is None:
        lacks.append("pyarrow")
    if lacks:
        raise MissingPackage("labelled data (--eval-data)", lacks, "data")


def numbers_of(kind: str, vectors: Floats) -> Doubles:
    """A model's numbers [examples, outputs]: of a pair, the cosine of its texts."""
    whole: Doubles = vectors.astype(np.float64)
    return pair_cosines(whole)[:, None] if kind == PAIRS else whole


def pair_cosines(vectors: Doubles) -> Doubles:
    """Of [2 pairs, H]: the cosine of each two that follow each other."""
    a, b = vectors[0::2], vectors[1::2]
    sizes = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    result: Doubles = (a * b).sum(-1) / np.maximum(sizes, 1e-30)
    return result


def decided(kind: str, vectors: Floats) -> NDArray[np.bool_]:
    """[passages, C]: what a classifier says yes to, by its logits."""
    if kind == MULTI_LABEL:
        return np.greater(vectors, 0)
    largest: NDArray[np.bool_] = np.arange(vectors.shape[-1]) == vectors.argmax(-1)[:, None]
    return largest


def classified(labels: Labels, expected: Floats, got: Floats) -> dict[str, Figure]:
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    a, b = decided(labels.kind, expected), decided(labels.kind, got)
    true = truth(labels, b.shape[-1])
    classes = np.flatnonzero(true.any(0))  # a class that no example has says nothing
    right_a, right_b = (true == a).all(-1), (true == b).all(-1)
    shown: tuple[NDArray[np.generic], NDArray[np.generic]] = (true, b)
    if labels.kind == SINGLE_LABEL:
        shown = (true.argmax(-1), b.argmax(-1))
    accuracy = float(accuracy_score(*shown))
    precision, recall, f1, _ = precision_recall_fscore_support(
        *shown, labels=classes, average="macro", zero_division=0.0
    )
    own = {"f1": f1, "precision": precision, "recall": recall, "matthews": _matthews(labels.kind, true, b, classes)}
    drop = paired(right_a, right_b)
    errors = _bootstrap(_macro(labels.kind, true, a, classes), _macro(labels.kind, true, b, classes), len(true))
    figures = {"accuracy": Figure(accuracy, math.sqrt(accuracy * (1 - accuracy) / len(true)))}
    figures |= {name: Figure(float(value), errors[name][0]) for name, value in own.items()}
    figures["accuracy_drop"] = drop
    whole = np.ones((1, len(true)))
    before, after = (_macro(labels.kind, true, one, classes)(whole) for one in (a, b))
    # Where no example differs a bootstrap finds no error: a macro average is never surer than the accuracy.
    for name in ("f1", "matthews"):
        figures[f"{name}_drop"] = Figure(float(before[name][0] - after[name][0]), max(errors[name][1], drop.se or 0.0))
    return figures | {"mcnemar_p": _mcnemar(right_a, right_b), "recall_drop": _worse(labels, true, a, b)}


def truth(labels: Labels, classes: int) -> NDArray[np.bool_]:
    """[examples, classes]: what each example is."""
    if labels.kind == MULTI_LABEL:
        return np.greater(labels.values, 0.5)
    one: NDArray[np.bool_] = np.arange(classes) == labels.values.astype(np.int64)[:, None]
    return one


def _matthews(kind: str, truth: NDArray[np.bool_], got: NDArray[np.bool_], classes: NDArray[np.int64]) -> float:
    """Matthews' correlation; of several labels at once, its mean over them, for it knows one decision an example."""
    from sklearn.metrics import matthews_corrcoef

    if kind == SINGLE_LABEL:
        return float(matthews_corrcoef(truth.argmax(-1), got.argmax(-1)))
    return float(np.mean([matthews_corrcoef(truth[:, one], got[:, one]) for one in classes]))


def _macro(kind: str, truth: NDArray[np.bool_], got: NDArray[np.bool_], classes: NDArray[np.int64]) -> Statistic:
    """The same figures of many weighted samples at once, from counts: what scikit-learn computes of one."""
    hit = (truth & got).astype(np.float64)
    said, there = got.astype(np.float64), truth.astype(np.float64)

    def statistic(weights: Doubles) -> Mapping[str, Doubles]:
        tp, p, t = weights @ hit, weights @ said, weights @ there
        total = weights.sum(-1, keepdims=True)
        few = [one[:, classes] for one in (tp, p, t)]
        if kind == SINGLE_LABEL:
            covariance = tp.sum(-1) * total[:, 0] - (p * t).sum(-1)
            spread = (total[:, 0] ** 2 - (p * p).sum(-1)) * (total[:, 0] ** 2 - (t * t).sum(-1))
            matthews = _over(covariance, np.sqrt(spread))
        else:
            c_tp, c_p, c_t = few
            spread = c_p * (total - c_p) * c_t * (total - c_t)
            matthews = _over(total * c_tp - c_p * c_t, np.sqrt(spread)).mean(-1)
        f_tp, f_p, f_t = few
        return {
            "f1": _over(2 * f_tp, f_p + f_t).mean(-1),
            "precision": _over(f_tp, f_p).mean(-1),
            "recall": _over(f_tp, f_t).mean(-1),
            "matthews": matthews,
        }

    return statistic


def _over(a: Doubles, b: Doubles) -> Doubles:
    """A quotient, 0 where scikit-learn has none."""
    result: Doubles = np.where(b > 0, a / np.where(b > 0, b, 1.0), 0.0)
    return result


def _bootstrap(before: Statistic, after: Statistic, examples: int) -> dict[str, tuple[float, float]]:
    """The standard errors of each figure of the artifact, and of what it is below the reference's."""
    own: dict[str, list[Doubles]] = {}
    drops: dict[str, list[Doubles]] = {}
    for weights in resampled(examples):
        a, b = before(weights), after(weights)
        for name in b:
            own.setdefault(name, []).append(b[name])
            drops.setdefault(name, []).append(a[name] - b[name])
    return {name: tuple(float(np.concatenate(one[name]).std(ddof=1)) for one in (own, drops)) for name in own}  # type: ignore[misc]


def resampled(examples: int) -> Iterator[Doubles]:
    """[some resamples, examples]: how often each example is drawn."""
    rng = np.random.default_rng(_SEED)
    for _ in range(_RESAMPLES // _CHUNK):
        drawn = rng.integers(0, examples, (_CHUNK, examples))
        yield np.stack([np.bincount(row, minlength=examples) for row in drawn]).astype(np.float64)


def paired(right_a: NDArray[np.bool_], right_b: NDArray[np.bool_]) -> Figure:
    """How much more often the reference is right, with the error of matched proportions."""
    count = len(right_a)
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    b, c, total = only_a + 0.5, only_b + 0.5, count + 2
    return Figure((only_a - only_b) / count, math.sqrt((b + c) - (b - c) ** 2 / total) / total)


def _mcnemar(right_a: NDArray[np.bool_], right_b: NDArray[np.bool_]) -> Figure:
    """The two-sided p of McNemar's exact test: that two equally good models differ so much by chance."""
    from scipy.stats import binomtest

    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    p = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return Figure(
        p, detail=f"{only_a} examples that the reference alone gets right, {only_b} that the artifact alone does"
    )


def _worse(labels: Labels, truth: NDArray[np.bool_], a: NDArray[np.bool_], b: NDArray[np.bool_]) -> Figure:
    """The largest drop of a class's recall; all that got worse are told, the worst first."""
    drops = []
    for number in map(int, np.flatnonzero(truth.any(0))):
        mine = truth[:, number]
        drops.append((paired(a[mine, number], b[mine, number]), number, int(mine.sum())))
    drops.sort(key=lambda one: -(one[0].value or 0.0))
    worse = [one for one in drops if (one[0].value or 0.0) > 0]
    told = []
    for drop, number, count in worse[:_TOLD]:
        mine = truth[:, number]
        told.append(
            f"{labels.names[number]} {a[mine, number].mean():.3f} → {b[mine, number].mean():.3f} "
            f"(−{drop.value:.3f} ± {drop.se:.3f}, {count} examples)"
        )
    more = f", and {len(worse) - _TOLD} more" if len(worse) > _TOLD else ""
    return Figure(drops[0][0].value, drops[0][0].se, ", ".join(told) + more or None)


def correlated(labels: Labels, a: Doubles, b: Doubles) -> dict[str, Figure]:
    """Of numbers [examples, outputs]: correlations with the labels, their mean over the outputs, and their drops."""
    before, after = _correlations(labels.values, a), _correlations(labels.values, b)
    rng = np.random.default_rng(_SEED)
    own: dict[str, list[float]] = {name: [] for name in after}
    drops: dict[str, list[float]] = {name: [] for name in after}
    for _ in range(_RESAMPLES):
        drawn = rng.integers(0, len(a), len(a))
        first, second = (_correlations(labels.values[drawn], one[drawn]) for one in (a, b))
        for name, value in second.items():
            own[name].append(value)
            drops[name].append(first[name] - value)
    figures: dict[str, Figure] = {}
    for name, value in after.items():
        figures[f"label_{name}"] = Figure(value, float(np.std(own[name], ddof=1)))
        figures[f"{name}_drop"] = Figure(before[name] - value, float(np.std(drops[name], ddof=1)))
    if labels.kind == REGRESSION:
        far_a, far_b = (np.abs(labels.values - one).mean(-1) for one in (a, b))
        figures |= {"label_mae": Figure(*mean(far_b)), "mae_rise": Figure(*mean(far_b - far_a))}
    return figures


def _correlations(labels: Doubles, numbers: Doubles) -> dict[str, float]:
    """A column that is all alike orders nothing: its correlation is 0."""
    from scipy.stats import rankdata

    ranks = rankdata(labels, axis=0), rankdata(numbers, axis=0)
    return {"pearson": _pearson(labels, numbers), "spearman": _pearson(*ranks)}


def _pearson(a: Doubles, b: Doubles) -> float:
    a, b = a - a.mean(0), b - b.mean(0)
    sizes = np.sqrt((a * a).sum(0) * (b * b).sum(0))
    return float(_over((a * b).sum(0), sizes).mean())
