"""The prompts that a person would try: the job's, or three sentences' beginnings of the evaluation's text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.checkpoint.load import read_config
from exporter.checkpoint.tokenizer import check_ids
from exporter.errors import JobError
from exporter.form import FORMS
from exporter.job import Job
from exporter.measure.samples import DECODER, NEW_TOKENS, SAMPLES, Decode, answer, continuation
from exporter.pipeline.labelled import class_names
from exporter.types import CLASSIFICATION, Checkpoint

if TYPE_CHECKING:
    from exporter.checkpoint.opened import TorchRunner

_PROMPTS, _TOKENS = 3, 16
_SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|\n+|(?<=[。！？])")
_LETTERS = 24  # of a sentence that says something


def check_samples(job: Job, task: str) -> None:
    """Raises JobError for prompts that this model cannot continue."""
    if job.sample and not FORMS[task].cached:
        raise JobError(
            f"--sample is a prompt to continue, and this model is for {task}: its report shows the texts of the "
            "evaluation that an artifact decides or orders otherwise"
        )
    if any(not text.strip() for text in job.sample):
        raise JobError("--sample '': a prompt needs a text")


def first_sentences(text: str) -> list[str]:
    """Three from different places of a text; fewer where it has no more."""
    sentences = list(dict.fromkeys(one.strip() for one in _SENTENCE.split(text[:50_000]) if one.strip()))
    long = [one for one in sentences if sum(map(str.isalnum, one)) >= _LETTERS] or sentences
    return [long[number * len(long) // _PROMPTS] for number in range(min(_PROMPTS, len(long)))]


def sampled(
    checkpoint: Checkpoint,
    tokenizer: Any,
    text: str,
    given: Sequence[str] | None,
    runner: TorchRunner,
    max_length: int | None,
) -> dict[str, Any]:
    """What is stored: the reference's continuations, where it stops, a classifier's names. Raises JobError."""
    config = read_config(checkpoint.path)
    told: dict[str, Any] = {"prompts": [], "stop": [], "names": []}
    if checkpoint.task == CLASSIFICATION:
        told["names"] = list(class_names(config))
    form = FORMS[checkpoint.task]
    if not form.cached or given is None:  # nothing is asked for
        return told
    told["stop"] = _named(checkpoint.path, config, "eos_token_id")
    if form.encodes:
        told["start"] = next(iter(_named(checkpoint.path, config, "decoder_start_token_id")), None)
        if told["start"] is None:  # chosen by who asks, as mBART's language is
            return told
    decode, plain = _decoders(tokenizer)
    for words in given or first_sentences(text):
        ids = list(tokenizer(words)["input_ids"])
        while len(ids) > 1 and ids[-1] in told["stop"] and not form.encodes:
            ids.pop()  # an end that the tokenizer writes would end the text before it began
        if not given and not form.encodes:
            ids = ids[:_TOKENS]
        if max_length is not None and len(ids) + NEW_TOKENS > max_length:
            if given:
                raise JobError(
                    f"--sample has {len(ids)} tokens, and with {NEW_TOKENS} more the model takes {max_length}"
                )
            ids = ids[: max(max_length // 2, 1)]
        array = np.array(ids, np.int64)
        if not given and array.max() >= runner.rows():  # beyond what is measured of the text
            continue
        check_ids(runner.rows(), array, "a sample")
        count = NEW_TOKENS if max_length is None else min(NEW_TOKENS, max_length - len(ids))
        new = answer(runner, array, told.get("start"), told["stop"], count)
        prompt = {"text": plain(ids), "ids": ids, "count": count, "new": new}
        told["prompts"].append({**prompt, "answer": continuation(decode, [] if form.encodes else ids, new)})
    return told


def _named(folder: Path, config: dict[str, Any], name: str) -> list[int]:
    """The ids of a name, such as those that end a text: of generation_config.json, else of config.json."""
    file = folder / "generation_config.json"
    own = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    found = own.get(name, config.get(name))
    return [int(one) for one in (found if isinstance(found, list) else [found]) if one is not None]


def reference_samples(told: dict[str, Any]) -> dict[str, Any] | None:
    """The reference's own row of them; None for a task that continues nothing."""
    if not told["prompts"]:
        return None
    shown = [
        {"input": [one["text"]], "reference": one["answer"], "answer": one["answer"], "differs_at": None, "label": None}
        for one in told["prompts"]
    ]
    return {"kind": "continuations", "changed": 0, "of": len(shown), "shown": shown}


def save_samples(told: dict[str, Any], tokenizer: Any, folder: Path) -> None:
    """Beside the reference, with what decodes ids where transformers and the checkpoint are not."""
    write_samples(told, folder)
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.save(str(folder / DECODER))


def write_samples(told: dict[str, Any], folder: Path) -> None:
    (folder / SAMPLES).write_text(json.dumps(told, ensure_ascii=False) + "\n", encoding="utf-8")


def decoders(folder: Path, checkpoint: Checkpoint) -> tuple[Decode, Decode]:
    """How the reference's stored ids become text: with special tokens, and without."""
    if (folder / DECODER).is_file():
        from tokenizers import Tokenizer

        return _both(Tokenizer.from_file(str(folder / DECODER)))
    from transformers import AutoTokenizer

    return _decoders(AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=checkpoint.trust_remote_code))


def _decoders(tokenizer: Any) -> tuple[Decode, Decode]:
    """Of a fast tokenizer its backend's, which is what is stored: transformers' may clean spaces up."""
    return _both(tokenizer.backend_tokenizer if tokenizer.is_fast else tokenizer)


def _both(tokenizer: Any) -> tuple[Decode, Decode]:
    return (
        lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=False)),
        lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)),
    )
