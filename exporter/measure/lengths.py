"""How far an artifact is right: its answers to texts that reach past each boundary of the model's, beside the model's.

For each boundary (exporter/checkpoint/boundaries.py) short texts below it and a text beyond it are compared, without a
cache and with one that is stepped across the boundary and beyond it. What a format costs it costs on both sides: an
artifact is wrong where its distance from the reference beyond the boundary is several times the one below. The
distance is KL in nats for generation; else the squared error over the square of the reference's answer (of a
classifier, whose few numbers may be near zero, the usual square).

A model may change its own state by what it has read, and stay so: BigBird has full attention for good after a short
text, a dynamic rope the frequencies of the longest. So each length has a runner of its own, and the long text is its
first, with the cache before it is read at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from exporter.errors import BuildError
from exporter.form import FORMS
from exporter.measure.arithmetic import Doubles, divergence_of, log_softmax, mean, top_of
from exporter.measure.quality import answered, encoded, finite
from exporter.report.result import Figure
from exporter.runner import BoundedRunner, CachedRunner, Floats, Ids, Runner

STEPS = 8  # decoded one by one after a prefill
FIGURE = "length_drift"
PROVEN = "proven_tokens"
LENGTHS = "lengths.npz"  # beside the reference's other answers
_COMPARED = 256  # positions of a long text
_FACTOR = 4  # times the distance below the boundary
_FLOOR = 1e-6  # a float32 engine's own: an error of a thousandth, squared
_SHORT, _MANY = 256, 64  # tokens of a text below a boundary at most, and of all of them at least


@dataclass(frozen=True)
class Length:
    """What is asked at one length. `name`: the boundary's; "" where a length was asked for and there is none.

    `near` [N, n] are texts below the boundary, `far` [S, T] those beyond it, of which the positions `at` are compared.
    `cuts`: lengths of `far` that are read at once into a cache, STEPS tokens before they are continued one by one.
    """

    name: str
    boundary: int
    near: Ids
    far: Ids
    at: Ids
    cuts: Ids

    @property
    def tokens(self) -> int:
        return int(self.far.shape[1])


class Answer(NamedTuple):
    """The reference's at P positions: for generation ids and log-probabilities [P, k], the rest's [P]; else [P, H]."""

    ids: Ids
    logp: Floats
    rest: Floats
    vectors: Floats

    def part(self, span: slice) -> Answer:
        return Answer(self.ids[span], self.logp[span], self.rest[span], self.vectors[span])


@dataclass(frozen=True)
class Told:
    """A length with the reference's answers; those from its cache are the last, STEPS + 1 for each cut."""

    length: Length
    near: Answer
    far: Answer
    cached: Answer

    def arrays(self) -> dict[str, Any]:
        """For an .npz file."""
        own = {field.name: np.asarray(getattr(self.length, field.name)) for field in fields(Length)}
        parts = ((part, getattr(self, part)._asdict()) for part in ("near", "far", "cached"))
        return own | {f"answer_{part}_{name}": it for part, its in parts for name, it in its.items()}

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Told:
        told = {name: data[name] for name in ("near", "far", "at", "cuts")}
        length = Length(str(data["name"]), int(data["boundary"]), **told)
        parts = {part: [data[f"answer_{part}_{name}"] for name in Answer._fields] for part in ("near", "far", "cached")}
        return cls(length, *(Answer(*parts[part]) for part in ("near", "far", "cached")))


@dataclass(frozen=True)
class Lengths:
    """All that is known of a model's lengths. `window`: tokens of the evaluation's longest text.

    `unproven`: the boundaries that lie too far to be looked beyond, (tokens, name) each.
    """

    window: int
    told: tuple[Told, ...] = ()
    unproven: tuple[tuple[int, str], ...] = ()

    def save(self, path: Path) -> None:
        """One .npz file; some megabytes for each length."""
        told = {f"{i}/{name}": it for i, one in enumerate(self.told) for name, it in one.arrays().items()}
        unproven: dict[str, Any] = {"tokens": np.array([it for it, _ in self.unproven], np.int64)}
        unproven["names"] = np.array([name for _, name in self.unproven], np.str_)
        np.savez(path, window=np.array(self.window), count=np.array(len(self.told)), **unproven, **told)

    @classmethod
    def load(cls, path: Path) -> Lengths:
        with np.load(path, allow_pickle=False) as data:
            told = []
            for i in range(int(data["count"])):
                prefix = f"{i}/"
                told.append(Told.of({k.removeprefix(prefix): data[k] for k in data.files if k.startswith(prefix)}))
            unproven = zip(data["tokens"].tolist(), data["names"].tolist(), strict=True)
            return cls(int(data["window"]), tuple(told), tuple(unproven))


def shape_of(boundary: int, tokens: int) -> tuple[int, int]:
    """(N, n): how many texts below a boundary, and of how many tokens; below half of it, for windows to both sides."""
    n = max(min(boundary // 2, tokens // 2, _SHORT), 2)
    return min(max(-(-_MANY // n), 4), 32), n


def positions(boundary: int, tokens: int, task: str) -> Ids:
    """Which of a long text are compared: the last ones beyond the boundary, for generation; else some of all."""
    if FORMS[task].cached:
        return np.arange(max(boundary, tokens - _COMPARED), tokens)
    return np.unique(np.linspace(0, tokens - 1, min(tokens, _COMPARED)).astype(np.int64))


def cuts_of(boundary: int, tokens: int, switch: bool, task: str) -> Ids:
    """Where a cache is continued: at the end, and across the boundary where both of its sides are computed alike."""
    if not FORMS[task].cached or tokens <= STEPS + 1:
        return np.zeros(0, np.int64)
    across = boundary - STEPS // 2
    found = [tokens - STEPS] + ([across] if not switch and 1 < across < tokens - STEPS else [])
    return np.array(found, np.int64)


class _Got(NamedTuple):
    near: Floats
    far: Floats
    cached: Floats


def _ask(runner: Runner, length: Length, task: str) -> _Got:
    """[P, V] each; the long text goes first, with the cache before it is read at once."""
    steps: list[Floats] = []
    if isinstance(runner, CachedRunner):
        for cut in length.cuts:
            steps += _continued(runner, length.far[0], int(cut), FORMS[task].encodes)
    far = np.concatenate([_rows(runner, ids, task, length.at) for ids in length.far])
    cached = np.stack(steps) if steps else np.zeros((0, far.shape[-1]), np.float32)
    near = np.concatenate([_rows(runner, ids, task, np.arange(len(ids))) for ids in length.near])
    return _Got(near, far, cached)


def _rows(runner: Runner, ids: Ids, task: str, at: Ids) -> Floats:
    out = answered(runner, ids if FORMS[task].encodes else None, ids)  # its own source: both halves read as far
    return (out[at] if FORMS[task].per_token else out).copy()


def _continued(runner: CachedRunner, ids: Ids, cut: int, encodes: bool) -> Iterator[Floats]:
    if encodes:
        encoded(runner, ids)
    yield finite(ids[:cut], runner.prefill(ids[:cut])[None])[0]
    for token in ids[cut : cut + STEPS]:
        yield finite(ids, runner.step(int(token))[None])[0]


def told_of(open_runner: Callable[[], Runner], length: Length, task: str) -> Told:
    """A length with the answers of the reference, which `open_runner` opens anew."""
    with open_runner() as runner:
        got = _ask(runner, length, task)
    return Told(length, *(_answer(rows, task) for rows in got))


def _answer(rows: Floats, task: str) -> Answer:
    none, words = np.zeros((0, 0), np.float32), FORMS[task].answers == "vocabulary"
    if not words or not len(rows):
        return Answer(none.astype(np.int64), none, np.zeros(0, np.float32), none if words else rows)
    ids, logp, rest = top_of(log_softmax(rows))
    return Answer(ids.astype(np.int64), logp, rest, none)


def _distance(answer: Answer, rows: Floats, told: Told, task: str) -> Doubles:
    if FORMS[task].answers == "vocabulary":
        return divergence_of((answer.ids.astype(np.int32), answer.logp, answer.rest), log_softmax(rows))
    expected = answer.vectors.astype(np.float64)
    size = (expected**2).sum(-1)
    if FORMS[task].answers == "classes":
        size = np.mean((np.concatenate([told.near.vectors, told.far.vectors]).astype(np.float64) ** 2).sum(-1))
    distance: Doubles = ((expected - rows) ** 2).sum(-1) / np.maximum(size, 1e-30)
    return distance


@dataclass(frozen=True)
class _Found:
    """What came out at one length: `drift` beyond 1 is wrong. `what`: in words, of the worst of its texts."""

    drift: float
    what: str


def compare_lengths(
    open_runner: Callable[[], Runner], lengths: Lengths, task: str, progress: Callable[[int, int], None]
) -> tuple[int, Figure]:
    """Tokens up to which the artifact that `open_runner` opens is proven, and its length_drift.

    The figure is the worst distance beyond a boundary over the largest that is explained by the one below it: more than
    1 is wrong. Its detail says what was proven and what was not. Raises BuildError for a text that it cannot answer.
    """
    proven, worst, limit = lengths.window, None, None
    right: list[str] = []
    wrong: list[str] = []
    open_ones = [name for _, name in lengths.unproven]
    ordered = sorted(lengths.told, key=lambda one: one.length.tokens)
    for done, told in enumerate(ordered):
        length = told.length
        with open_runner() as runner:
            limit = runner.max_length if isinstance(runner, BoundedRunner) else None
            if limit is not None and limit < length.tokens:
                # An engine that ends between the boundary and the text beyond it was not looked at there.
                open_ones = [one.length.name for one in ordered[done:] if one.length.boundary < limit]
                break
            found = _compare(runner, told, task)
        worst = max(worst or 0.0, found.drift)
        if found.drift > 1:
            wrong.append(f"wrong {_beyond(length)}: {found.what}")
            proven = min(proven, length.boundary)
        else:
            right += [length.name] * bool(length.name)
            proven = proven if wrong else max(proven, length.tokens)
        progress(done + 1, len(lengths.told))
    else:
        limit = None
    progress(len(ordered), len(ordered))  # those beyond an engine's own end are not opened for
    if not lengths.told and not lengths.unproven:
        return proven, Figure()
    parts = [*wrong, f"proven up to {proven:,} tokens" + (f", beyond {' and '.join(right)}" if right else "")]
    if open_ones:
        parts.append(f"not proven beyond {' and '.join(open_ones)}")
    if limit is not None:
        parts.append(f"its engine takes no more than {limit:,} tokens")
    elif lengths.unproven:
        parts[-1] += f", which --proven-length {max(far for far, _ in lengths.unproven)} would reach"
    return proven, Figure(worst, None, "; ".join(parts))


def _beyond(length: Length) -> str:
    return f"beyond {length.name}" if length.name else f"at {length.tokens:,} tokens"


def _compare(runner: Runner, told: Told, task: str) -> _Found:
    length = told.length
    try:
        got = _ask(runner, length, task)
    except BuildError as error:
        raise BuildError(f"{_beyond(length)}, at {length.tokens:,} tokens: {error}") from error
    except Exception as error:  # whatever an engine raises of shapes that it was not made for
        why = " ".join(str(error).split())[:300]
        raise BuildError(f"it cannot read {length.tokens:,} tokens ({_beyond(length)}): {why}") from error
    near = _distance(told.near, got.near, told, task)
    below, spread = mean(near)
    allowed = _FACTOR * (max(below, 0.0) + 2 * spread) + _FLOOR
    far = _distance(told.far, got.far, told, task)
    has_cache = len(got.cached) > 0 and len(got.cached) == len(told.cached.rest)
    texts = [(far, told.far, got.far, ""), *(_of_cache(told, got, far, task) if has_cache else [])]
    ranked = []
    for distances, answer, rows, how in texts:
        value, spread = mean(distances)
        said = f"relative error {value:.2g}, squared"
        if FORMS[task].answers == "vocabulary":
            said = f"KL {value:.2g} nats, top-1 {(answer.ids[:, 0] == rows.argmax(-1)).mean():.0%}"
        at = f"at {length.tokens:,} tokens{how} ({max(below, 0.0):.2g} below)"
        ranked.append(_Found(max(value - 2 * spread, 0.0) / allowed, f"{said} {at}"))
    return max(ranked, key=lambda one: one.drift)


def _of_cache(told: Told, got: _Got, far: Doubles, task: str) -> list[tuple[Doubles, Answer, Floats, str]]:
    """The same with a cache. Where the reference answers otherwise with one than without, either is right."""
    texts = []
    for number, cut in enumerate(told.length.cuts):
        span = slice(number * (STEPS + 1), (number + 1) * (STEPS + 1))
        answer, rows = told.cached.part(span), got.cached[span]
        distances = _distance(answer, rows, told, task)
        last = int(cut) + STEPS == told.length.tokens
        if last and len(far) >= STEPS + 1:
            uncached = told.far.part(slice(-(STEPS + 1), None))
            others = _distance(uncached, rows, told, task)
            distances, answer = min((distances, answer), (others, uncached), key=lambda one: float(one[0].mean()))
        texts.append((distances, answer, rows, f", {int(cut):,} of them cached"))
    return texts
