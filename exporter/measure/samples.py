"""What a person would try: greedy continuations, and the texts that an artifact decides or orders otherwise.

Figures say how much an artifact differs; these say how it looks. What is shown is data of the model and of its texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from exporter.measure.arithmetic import Doubles, log_softmax
from exporter.measure.labels import decided, pair_cosines
from exporter.measure.quality import NotFinite, Passages, encoded
from exporter.runner import BoundedRunner, CachedRunner, Floats, Ids, Runner
from exporter.types import MULTI_LABEL

SAMPLES, DECODER = "samples.json", "decoder.json"  # beside the reference's answers
NEW_TOKENS = 48
_SHOWN = 3
_ITEMS = 600  # whose order is compared, each with each
_PASSAGES = 30  # of embeddings without labels: 435 pairs
_ALIKE = 1e-3  # of the standard deviation: what is nearer than that has no order

Decode = Callable[[Sequence[int]], str]


def most_likely(runner: Runner, ids: Ids) -> Iterator[int]:
    """The most likely next tokens after [T] ids, one after another, with the artifact's own cache where it has one.

    It never ends by itself; each token is asked of the engine when it is wanted.
    """
    cached = runner if isinstance(runner, CachedRunner) else None
    out: list[int] = []
    logits = runner.logits(ids)[-1] if cached is None else cached.prefill(ids)
    while True:
        if np.isnan(logits).any() or not np.isfinite(logits).any():
            raise NotFinite(np.append(ids, out), logits)
        token = int(logits.argmax())
        out.append(token)
        yield token
        again = np.append(ids, out).astype(np.int64)
        logits = runner.logits(again)[-1] if cached is None else cached.step(token)


def greedy(runner: Runner, ids: Ids, stop: Sequence[int], count: int) -> list[int]:
    """The most likely next tokens after [T] ids: up to `count`, an end of the text, or the engine's longest text."""
    longest = runner.max_length if isinstance(runner, BoundedRunner) else len(ids) + count
    out: list[int] = []
    for token in most_likely(runner, ids):
        out.append(token)
        if token in stop or len(out) == count or len(ids) + len(out) >= longest:
            break
    return out


def answer(runner: Runner, ids: Ids, start: int | None, stop: Sequence[int], count: int) -> list[int]:
    """What follows [T] ids; of an encoder-decoder, whose decoder begins with `start`, what is made of them."""
    if start is None:
        return greedy(runner, ids, stop, count)
    encoded(runner, ids)
    return greedy(runner, np.array([start], np.int64), stop, count)


def continuation(decode: Decode, prompt: Sequence[int], answer: Sequence[int]) -> str:
    """The text of an answer as it follows its prompt: some decoders make a word's space of what stands before it."""
    before, whole = decode(prompt), decode([*prompt, *answer])
    return whole[len(before) :] if whole.startswith(before) else decode(answer)


def first_difference(a: str, b: str) -> int | None:
    """The first character that differs; None where none does."""
    if a == b:
        return None
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def continuations(runner: Runner, told: dict[str, Any], decode: Decode) -> dict[str, Any]:
    """The artifact's continuations of the reference's prompts (its samples.json), beside its own."""
    shown = []
    for prompt in told["prompts"]:
        ids, stop, reference = prompt["ids"], told["stop"], prompt["answer"]
        new = answer(runner, np.array(ids, np.int64), told.get("start"), stop, prompt["count"])
        before = ids if told.get("start") is None else []  # a decoder's answer does not go on with its source
        if len(new) < len(prompt["new"]) and new[-1] not in stop:  # an engine's profile ends it sooner
            reference = continuation(decode, before, prompt["new"][: len(new)])
        shown.append(_sample([prompt["text"]], reference, continuation(decode, before, new)))
    return _samples("continuations", sum(one["differs_at"] is not None for one in shown), len(shown), shown)


def changed_labels(
    problem: str, expected: Floats, got: Floats, names: Sequence[str], texts: Callable[[int], str], right: Any = None
) -> dict[str, Any]:
    """The texts whose label is not the reference's; those of which the reference was surest come first.

    `right`: the labels' [N, C], where there are any.
    """
    a, b = decided(problem, expected), decided(problem, got)
    changed = np.flatnonzero((a != b).any(-1))
    sure = np.abs(expected) if problem == MULTI_LABEL else log_softmax(expected)
    first = sorted(changed, key=lambda one: -float(sure[one].max()))[:_SHOWN]
    shown = []
    for one in map(int, first):
        before, after = (_decision(problem, names, side[one], made[one]) for side, made in ((expected, a), (got, b)))
        label = None if right is None else _named(names, right[one])
        shown.append(_sample([texts(one)], before, after, label))
    return _samples("labels", len(changed), len(expected), shown)


def changed_transcripts(
    names: Sequence[str], expected: Sequence[str], got: Sequence[str], said: Sequence[str] | None
) -> dict[str, Any]:
    """The first sounds whose transcript is not the reference's; `said`: what is right, where it is known."""
    changed = [number for number, (a, b) in enumerate(zip(expected, got, strict=True)) if a != b]
    shown = [
        _sample([names[one]], expected[one], got[one], None if said is None else said[one]) for one in changed[:_SHOWN]
    ]
    return _samples("transcripts", len(changed), len(expected), shown)


def _decision(problem: str, names: Sequence[str], logits: Floats, made: Any) -> str:
    if problem == MULTI_LABEL:
        return _named(names, made)
    return f"{_named(names, made)} ({float(np.exp(log_softmax(logits).max())):.0%})"


def _named(names: Sequence[str], made: Any) -> str:
    return (
        ", ".join(names[number] if number < len(names) else str(number) for number in map(int, np.flatnonzero(made)))
        or "none"
    )


def changed_order(expected: Doubles, got: Doubles, texts: Callable[[int], str]) -> dict[str, Any]:
    """Of items with a number each: the two whose order is another than the reference's, the furthest apart first."""
    a, b = expected[:_ITEMS], got[:_ITEMS]
    apart, now = a[:, None] - a, b[:, None] - b
    swapped = (apart > _ALIKE * a.std()) & (now < -_ALIKE * b.std())
    places = np.argwhere(swapped)
    places = places[np.argsort(-apart[swapped], kind="stable")]
    shown = [
        _sample([texts(i), texts(j)], f"{a[i]:.4f} > {a[j]:.4f}", f"{b[i]:.4f} < {b[j]:.4f}")
        for i, j in ((int(i), int(j)) for i, j in places[:_SHOWN])
    ]
    return _samples("order", len(places), len(a) * (len(a) - 1) // 2, shown)


def changed_neighbours(expected: Floats, got: Floats, texts: Callable[[int], str], paired: bool) -> dict[str, Any]:
    """Of embeddings [passages, H]: the pairs of texts whose order by cosine changed.

    `paired`: passages 2i and 2i + 1 are a pair; else each of the first few is paired with each.
    """
    first, second = expected.astype(np.float64), got.astype(np.float64)
    if paired:
        return changed_order(
            pair_cosines(first), pair_cosines(second), lambda i: f"{texts(2 * i)} ↔ {texts(2 * i + 1)}"
        )
    i, j = np.triu_indices(min(len(first), _PASSAGES), 1)
    if not len(i):
        return _samples("order", 0, 0, [])
    a, b = (_cosines(vectors, i, j) for vectors in (first, second))
    return changed_order(a, b, lambda one: f"{texts(int(i[one]))} ↔ {texts(int(j[one]))}")


def _cosines(vectors: Doubles, i: Any, j: Any) -> Doubles:
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-30)
    result: Doubles = (unit[i] * unit[j]).sum(-1)
    return result


def texts_of(passages: Passages, decode: Decode) -> Callable[[int], str]:
    """A passage's text by its number, on one line."""
    begins = passages.offsets
    return lambda one: " ".join(decode(passages.ids[begins[one] : begins[one + 1]].tolist()).split())


def _sample(texts: list[str], reference: str, answer: str, label: str | None = None) -> dict[str, Any]:
    return {
        "input": texts,
        "reference": reference,
        "answer": answer,
        "differs_at": first_difference(reference, answer),
        "label": label,
    }


def _samples(kind: str, changed: int, of: int, shown: list[dict[str, Any]]) -> dict[str, Any]:
    return {"kind": kind, "changed": changed, "of": of, "shown": shown}
