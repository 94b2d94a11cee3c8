"""The text that is measured on: the user's, the recipe's, or the standard library's."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exporter.checkpoint.recipes import Recipe
from exporter.errors import JobError, not_utf8
from exporter.job import CompressJob, MergeJob
from exporter.pipeline.source import Source
from exporter.tasks.known import TASKS
from exporter.types import GENERATION

TOPICS = "pydoc_data.topics of the Python standard library"
CALIB_TEXT = "--calib-text"
PASSAGE = 50  # words in a row that two texts do not share by chance
# Characters of scripts that put no spaces between words count as words.
_WORD = re.compile(r"[\u2e80-\u9fff\uac00-\ud7ff\uf900-\ufaff]|[^\s\u2e80-\u9fff\uac00-\ud7ff\uf900-\ufaff]+")


def evaluation_text(path: Path | None, recipe: Recipe | None) -> tuple[str, str]:
    """(what the report calls it, the text). Raises JobError for a file that is not there, not UTF-8, or empty."""
    if path is None and recipe is not None and recipe.eval_text is not None:
        path = recipe.folder() / recipe.eval_text
    if path is None:
        return TOPICS, standard_library_topics()
    return path.name, read_text(path, "--eval-text")


def window_of(job: MergeJob, task: str, max_length: int | None, usual: int | None = None) -> tuple[int, int]:
    """Window and stride of the evaluation, in tokens; `usual`: another window than the task's. Raises JobError."""
    usual = usual or TASKS[task].window
    if TASKS[task].form.inputs != "text":  # a sample's first axis: a picture's channels, the samples of a sound
        return usual, usual
    window = job.window or min(usual, max_length or usual)
    if max_length is not None and window > max_length:
        raise JobError(f"--window {window} is longer than this model's {max_length} positions")
    stride = job.stride or max(window // 2, 1)
    if task == GENERATION and stride > window:
        raise JobError(
            f"--stride {stride} is longer than the window, {window}: tokens between windows would be left out"
        )
    return window, stride


def calibration_text(
    path: Path | None, recipe: Recipe | None, evaluated: str, tokens: int, flag: str = CALIB_TEXT
) -> tuple[str, str, int]:
    """(its name, the text, how many of its first tokens to leave out) to calibrate on: never what is measured on.

    `flag`: which option gave the path.

    Where both are the standard library's topics, calibration takes what comes after the `tokens` that are measured, or
    after the part of them that `evaluated` is.
    Raises JobError for a file that cannot be used, or shares a passage with the `tokens` words that are measured.
    """
    if path is None and recipe is not None and recipe.calib_text is not None:
        path = recipe.folder() / recipe.calib_text
    name, text = (TOPICS, standard_library_topics()) if path is None else (str(path), read_text(path, flag))
    if path is None and text == evaluated:
        return TOPICS, text, tokens
    if path is None and evaluated and text.startswith(evaluated):
        return TOPICS, text[len(evaluated) :], 0
    refuse_shared(name, text, evaluated, tokens, flag)
    return TOPICS if path is None else path.name, text, 0


def refuse_shared(name: str, text: str, evaluated: str, tokens: int, flag: str) -> None:
    """Raises JobError where a text shares a passage with the first `tokens` words of what is measured on."""
    # A token is rarely more than a word: so many words hold all that is measured.
    passage = shared_passage(_WORD.findall(evaluated)[:tokens], _WORD.findall(text))
    if passage is not None:
        raise JobError(
            f"{name} shares text with what is measured on: learned from it, the figures would flatter; give another "
            f"{flag}. The first passage that both hold: {passage}"
        )


def calibration_told(job: CompressJob, source: Source, evaluated: str = "", measured: int = 0) -> dict[str, Any]:
    """What a worker is told of the text to calibrate on; nothing is measured where no `evaluated` text is given."""
    name, text, skip = calibration_text(job.calib_text, source.recipe, evaluated, measured)
    return {"name": name, "text": text, "tokens": job.calib_tokens, "skip": skip, "max_length": source.max_length}


def shared_passage(measured: Sequence[str], calibration: Sequence[str]) -> str | None:
    """The first PASSAGE or more words in a row of `measured` that `calibration` holds too, abridged; or None.

    Where one of them is shorter than that, all of it. Of any run of PASSAGE words, half as many make a whole block of
    `calibration`, cut into blocks of that length: so those are looked up, and what is found is followed to both sides.
    """
    long = min(PASSAGE, len(measured), len(calibration))
    if long == 0:  # nothing is measured
        return None
    size = (long + 1) // 2
    places: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for begin in range(0, len(calibration) - size + 1, size):
        places[tuple(calibration[begin : begin + size])].append(begin)
    for begin in range(len(measured) - size + 1):
        for place in places.get(tuple(measured[begin : begin + size]), ()):
            start, end, ahead = begin, begin + size, place - begin
            while min(start, start + ahead) > 0 and measured[start - 1] == calibration[start + ahead - 1]:
                start -= 1
            while end < min(len(measured), len(calibration) - ahead) and measured[end] == calibration[end + ahead]:
                end += 1
            if end - start >= long:
                return _abridged(measured[start:end])
    return None


def _abridged(words: Sequence[str]) -> str:
    """A passage in quotes: its first words, and how many there are."""
    shown = " ".join(words[:12])
    return f"'{shown}'" if len(words) <= 12 else f"'{shown} …' ({len(words)} words)"


def read_text(path: Path, flag: str) -> str:
    """A text file, which `flag` named. Raises JobError for one that is empty, missing or not UTF-8."""
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(path, error, "text.txt") from error
    except OSError as error:
        raise JobError(f"cannot read the text {path}: {error.strerror}") from error
    if not text.strip():
        raise JobError(f"the text {path} is empty; give another with {flag}")
    return text


def first_half(text: str) -> str:
    """Of the standard library's topics, where pairs of sentences are measured on: their sources have tokens that nobody
    counts, so that which text they leave is not known by a number of tokens. Paragraphs stay whole."""
    return text[: text.index("\n\n", len(text) // 2)]


def standard_library_topics() -> str:
    """English prose that every Python carries; it differs a little between Python versions."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))
