"""Speed of an artifact, in a process of its own: rounds of prefill and decode, which the caller interleaves.

Prefill is one forward over 128 and over 512 tokens; decode is 64 tokens, one at a time, after a prompt of 128. Encoders
have prefill only, and the passage is one sequence. Of an encoder-decoder, prefill is to read so long a source and to
answer with the first token, and decode is what follows a source of 128. Of a model of pictures one is timed, and eight
at once; of one that hears, four seconds of sound; where it has a decoder, the first token of a transcript, and each
after it. A round begins with a forward that is not counted: other variants had the processor's caches since the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

import numpy as np

from exporter.runner import BatchRunner, CachedRunner, DeviceRunner, EncoderDecoderRunner, Floats, Ids, Runner, Sample

T = TypeVar("T")
PREFILL_LENGTHS = (128, 512)
PROMPT, DECODED = 128, 64
CALLS = 3  # of each prefill in a round
TOGETHER = 8  # pictures in a batch
PICTURE, PICTURES = "picture", f"pictures_{TOGETHER}"
SOUND, SECONDS = "sound", 4  # a sound is timed at a length that all models are
SPEECH = "speech"  # of a model with a decoder: a spectrogram to the first token of its transcript
Round = dict[str, list[float]]  # milliseconds: "prefill_128", "prefill" (512 tokens), "decode"; else those


def name_of(length: int) -> str:
    """The longest prefill is the one that the report calls prefill."""
    return "prefill" if length == PREFILL_LENGTHS[-1] else f"prefill_{length}"


def measure_round(runner: Runner, ids: Sample, max_length: int) -> Round:
    """One round on [N] token ids (repeated where the text is shorter), a picture or a sound: milliseconds."""
    if isinstance(runner, EncoderDecoderRunner) and ids.dtype.kind == "f":
        return _of_speech(runner, ids, max_length)
    if ids.ndim > 1:
        return _of_pictures(runner, ids)
    if ids.dtype.kind == "f":
        runner.logits(ids)
        return {SOUND: [_milliseconds(runner, runner.logits, ids) for _ in range(CALLS)]}
    ids = np.resize(ids, PREFILL_LENGTHS[-1] + DECODED)
    forward = _forward(runner)
    times: Round = {}
    for length in PREFILL_LENGTHS:
        if length <= max_length:
            forward(ids[:length])
            times[name_of(length)] = [_milliseconds(runner, forward, ids[:length]) for _ in range(CALLS)]
    if isinstance(runner, CachedRunner) and max_length >= PROMPT + DECODED:
        forward(ids[:PROMPT])
        times["decode"] = [_milliseconds(runner, runner.step, int(token)) for token in ids[PROMPT : PROMPT + DECODED]]
    return times


def _of_pictures(runner: Runner, picture: Sample) -> Round:
    runner.logits(picture)
    times: Round = {PICTURE: [_milliseconds(runner, runner.logits, picture) for _ in range(CALLS)]}
    if isinstance(runner, BatchRunner):
        several, mask = np.stack([picture] * TOGETHER), np.ones((TOGETHER, len(picture)), np.int64)
        times[PICTURES] = [_milliseconds(runner, lambda batch: runner.batch(batch, mask), several)]
    return times


def _of_speech(runner: EncoderDecoderRunner, spectrogram: Sample, max_length: int) -> Round:
    """What the first token of a transcript takes, its sound's reading included, and each of those after it."""
    first = np.zeros(1, np.int64)

    def begun(source: Sample) -> Floats:
        runner.encode(source)
        return runner.prefill(first)

    begun(spectrogram)
    times: Round = {SPEECH: [_milliseconds(runner, begun, spectrogram) for _ in range(CALLS)]}
    steps = range(min(DECODED, max_length - 1))
    return times | {"decode": [_milliseconds(runner, runner.step, 0) for _ in steps]}


def warm_up(runner: Runner, ids: Sample, max_length: int) -> None:
    """Engines allocate, compile and pack at the first calls: none of that is what a user waits for later."""
    if isinstance(runner, EncoderDecoderRunner) and ids.dtype.kind == "f":
        _of_speech(runner, ids, 2)
        return
    if ids.dtype.kind == "f":
        runner.logits(ids)
        return
    ids = np.resize(ids, PREFILL_LENGTHS[-1])[: min(max_length, PREFILL_LENGTHS[-1])]
    if isinstance(runner, CachedRunner):
        _forward(runner)(ids[:-1])
        runner.step(int(ids[-1]))
    else:
        runner.logits(ids)


def _forward(runner: Runner) -> Callable[[Ids], Floats]:
    """What reads a whole text."""
    if isinstance(runner, EncoderDecoderRunner):
        return partial(_answer_to, runner)
    return runner.prefill if isinstance(runner, CachedRunner) else runner.logits


def _answer_to(runner: EncoderDecoderRunner, source: Ids) -> Floats:
    runner.encode(source)
    return runner.prefill(source[:1])


class Budget:
    """Seconds that the rounds of some variants may take from now on: one is begun where one like the last still fits.

    The first one is always whole: without it there would be no figure.
    """

    def __init__(self, seconds: float) -> None:
        self._end, self._began = perf_counter() + seconds, 0.0

    def another(self, done: int) -> bool:
        """Whether to begin a round after `done` of them."""
        now = perf_counter()
        last, self._began = now - self._began, now
        return not done or now + last <= self._end


def summarize(rounds: Sequence[Round]) -> dict[str, Any]:
    """latency_ms (p50, p90, p99 over all rounds), tokens per second at the median, and how many rounds there were."""
    pooled: Round = {}
    for one in rounds:
        for name, values in one.items():
            pooled.setdefault(name, []).extend(values)
    latency = {
        name: dict(zip(("p50", "p90", "p99"), (float(v) for v in np.percentile(values, (50, 90, 99))), strict=True))
        for name, values in pooled.items()
    }
    longest = next((length for length in reversed(PREFILL_LENGTHS) if name_of(length) in latency), None)
    prefill = None if longest is None else longest * 1000 / latency[name_of(longest)]["p50"]
    decode = 1000 / latency["decode"]["p50"] if "decode" in latency else None
    rates = {"prefill_tokens_per_s": prefill, "decode_tokens_per_s": decode}
    rates["pictures_per_s"] = 1000 / latency[PICTURE]["p50"] if PICTURE in latency else None
    rates["times_real_time"] = 1000 * SECONDS / latency[SOUND]["p50"] if SOUND in latency else None
    return {"latency_ms": latency, **rates, "rounds": len(rounds)}


def _milliseconds(runner: Runner, call: Callable[[T], object], argument: T) -> float:
    """Of one call: on a GPU its engine's own time, between CUDA events."""
    start = perf_counter()
    call(argument)
    elapsed = (perf_counter() - start) * 1000
    return runner.device_ms if isinstance(runner, DeviceRunner) else elapsed
