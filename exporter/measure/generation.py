"""Generation as its users feel it: how long an artifact writes what the reference would, and how fast it writes.

Agreement is greedy: the tokens of the reference's own continuation that an artifact finds too, up to the first that
differs. The prompts are the beginnings of windows from all over the evaluation's text; an encoder-decoder is asked what
it makes of sources from all over the evaluation's pairs.

Times are a clock's on the wall, of whole generations, in the process that measures speed: what a user waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from time import perf_counter
from typing import Any

import numpy as np

from exporter.measure.latency import PROMPT
from exporter.measure.quality import Passages, encoded
from exporter.measure.samples import greedy, most_likely
from exporter.runner import BatchCachedRunner, BoundedRunner, CachedRunner, EncoderDecoderRunner, Ids, Runner

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 8, 32, 32
GENERATED = 100  # tokens of a generation that is timed, after a prompt of latency.PROMPT
BATCHES, STEPS = (1, 4, 8), 16  # sequences at once, and the steps that are timed of each
RUNS = 3  # of a generation at most
# The keys of a row's generation that are of its speed.
TIMED = ("end_to_end_s", "end_to_end_prompt", "end_to_end_new", "end_to_end_runs", "tokens_per_s", "not_timed")
NO_CACHE = "it has no KV cache"


def prompts_of(ids: Ids, bos: int | None, max_length: int | None) -> list[Ids]:
    """The beginnings of windows from all over a text [N]; shorter ones where the model has few positions.

    `bos`: the token that begins every text of this model's, where the text here begins with it.
    """
    length = min(PROMPT_TOKENS, len(ids), PROMPT_TOKENS if max_length is None else max(max_length // 2, 1))
    starts = np.linspace(0, len(ids) - length, PROMPTS).astype(np.int64)
    prompts = [ids[start : start + length].copy() for start in starts]
    for prompt in prompts:
        prompt[0] = prompt[0] if bos is None or ids[0] != bos else bos
    return prompts


def reference_continuations(
    runner: Runner, ids: Ids, bos: int | None, stop: Sequence[int], max_length: int | None
) -> dict[str, Any]:
    """What is stored: prompts with the reference's greedy continuations, each until an end of the text."""
    prompts = prompts_of(ids, bos, max_length)
    count = NEW_TOKENS if max_length is None else min(NEW_TOKENS, max_length - len(prompts[0]))
    told = [{"ids": prompt.tolist(), "new": greedy(runner, prompt, stop, count)} for prompt in prompts]
    return {"prompts": told, "new_tokens": count}


def reference_answers(
    runner: Runner, passages: Passages, stop: Sequence[int], max_length: int | None
) -> dict[str, Any]:
    """What is stored of an encoder-decoder: which pairs' sources it was asked of, and what it makes of each."""
    count = NEW_TOKENS if max_length is None else min(NEW_TOKENS, max_length - 1)
    told = []
    for number in np.unique(np.linspace(0, len(passages.offsets) - 2, PROMPTS).astype(np.int64)):
        encoded(runner, passages.source(number))
        start = passages.decoded(number)[:1]
        told.append({"pair": int(number), "ids": start.tolist(), "new": greedy(runner, start, stop, count)})
    return {"prompts": told, "new_tokens": count}


def agreement(runner: Runner, told: Mapping[str, Any], passages: Passages | None = None) -> dict[str, Any]:
    """An artifact beside the reference's stored continuations, one prompt after the other, as one user would ask.

    No batch: formats that find a range for each call (int8-dynamic) answer otherwise in one. An engine that ends sooner
    is compared as far as it goes. `passages` hold the sources of an encoder-decoder's.
    """
    if not isinstance(runner, CachedRunner):
        return {"not_compared": NO_CACHE}
    agreed, whole = [], []
    for prompt in told["prompts"]:
        ids = np.array(prompt["ids"], np.int64)
        room = runner.max_length - len(ids) if isinstance(runner, BoundedRunner) else len(prompt["new"])
        if room < 1:
            return {"not_compared": f"it takes no more than {len(ids) + room} tokens, and a prompt has {len(ids)}"}
        expected = prompt["new"][:room]
        if "pair" in prompt:
            assert passages is not None
            encoded(runner, passages.source(prompt["pair"]))
        agreed.append(_shared(runner, ids, expected))
        whole.append(agreed[-1] == len(expected))
    return compared(told, agreed, whole)


def compared(told: Mapping[str, Any], agreed: Sequence[int], whole: Sequence[bool]) -> dict[str, Any]:
    """The figures of the tokens that each prompt's continuation shares with the reference's, and whether it is all."""
    first = told["prompts"][0]
    return {
        "prompts": len(agreed),
        "prompt_tokens": None if "pair" in first else len(first["ids"]),
        "new_tokens": told["new_tokens"],
        "agreed_tokens": list(agreed),
        "agreed_tokens_mean": float(np.mean(agreed)),
        "agreed_tokens_median": float(np.median(agreed)),
        "greedy_agreement": float(np.mean(whole)),
    }


def itself(told: Mapping[str, Any]) -> dict[str, Any]:
    """The reference's own figures: it never differs."""
    lengths = [len(prompt["new"]) for prompt in told["prompts"]]
    return compared(told, lengths, [True] * len(lengths))


def _shared(runner: Runner, ids: Ids, expected: Sequence[int]) -> int:
    """How many of the expected tokens come, up to the first other one, after which nothing is asked."""
    pairs = zip(expected, islice(most_likely(runner, ids), len(expected)), strict=True)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), len(expected))


def time_generation(runner: Runner, ids: Ids, max_length: int) -> dict[str, Any]:
    """Seconds of one generation, and tokens per second at each batch, on [N] token ids (repeated where too short).

    What has no figure is None, with its reason in `not_timed`.
    """
    if not isinstance(runner, CachedRunner):
        return {"not_timed": NO_CACHE}
    if max_length < PROMPT + GENERATED:
        return {"not_timed": f"{PROMPT + GENERATED} tokens are generated, and it takes {max_length}"}
    ids = np.resize(ids, max(PROMPT, BATCHES[-1] * (PROMPT_TOKENS + STEPS)))
    begin = perf_counter()
    begun = ids[:PROMPT]
    if isinstance(runner, EncoderDecoderRunner):
        runner.encode(begun)
        begun = begun[:1]
    greedy(runner, begun, (), GENERATED)
    seconds = perf_counter() - begin
    rows = ids[: BATCHES[-1] * (PROMPT_TOKENS + STEPS)].reshape(BATCHES[-1], -1)
    rates: dict[str, float | None] = dict.fromkeys(map(str, BATCHES))
    if isinstance(runner, BatchCachedRunner):
        for size in BATCHES:
            runner.prefill_batch(rows[:size, :PROMPT_TOKENS])
            rates[str(size)] = _rate(size, runner.step_batch, list(rows[:size, PROMPT_TOKENS:].T))
        return {"seconds": seconds, "tokens_per_s": rates, "not_timed": None}
    runner.prefill(rows[0, :PROMPT_TOKENS])
    rates["1"] = _rate(1, lambda token: runner.step(int(token)), list(rows[0, PROMPT_TOKENS:]))
    why = f"more than one sequence at once: {runner.engine} is asked for one at a time here"
    return {"seconds": seconds, "tokens_per_s": rates, "not_timed": why}


def _rate(size: int, step: Callable[[Any], object], tokens: Sequence[Any]) -> float:
    step(tokens[0])  # the first one at a batch's size allocates
    begin = perf_counter()
    for one in tokens[1:]:
        step(one)
    return size * (len(tokens) - 1) / (perf_counter() - begin)


def summarize(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The medians of what was timed once or a few times, with how it was."""
    last = runs[-1]
    found: dict[str, Any] = {"not_timed": last["not_timed"]}
    if "seconds" not in last:
        return found
    each = {size: [one["tokens_per_s"][size] for one in runs] for size in last["tokens_per_s"]}
    rates = {size: None if None in values else float(np.median(values)) for size, values in each.items()}
    return found | {
        "end_to_end_s": float(np.median([one["seconds"] for one in runs])),
        "end_to_end_prompt": PROMPT,
        "end_to_end_new": GENERATED,
        "end_to_end_runs": len(runs),
        "tokens_per_s": rates,
    }
