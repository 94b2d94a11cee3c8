"""One pass over calibration text through the float model: what its linear layers are fed.

The folder holds statistics.safetensors (exporter.quantization.statistics has what is in it), windows.npy (the token
ids, int64 [windows, window], for targets that run a graph of their own on them) and calibration.json (text, tokens,
windows, window).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exporter import store
from exporter.checkpoint.linear import PAIR, are_tokens
from exporter.checkpoint.load import read_config
from exporter.checkpoint.two_towers import longest_text
from exporter.errors import JobError
from exporter.form import FORMS
from exporter.quantization.statistics import collect, save_statistics
from exporter.types import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor


WINDOW = 512
_SECONDS = 2  # of a sound at a time
_LINES = 16  # texts beside pictures
FEWEST = 4  # windows of which one is held out, where a policy is made


def calibrate(
    checkpoint: Checkpoint,
    folder: Path,
    key: str,
    threads: int,
    progress: Callable[[int, int], None],
    *,
    name: str,
    text: str,
    tokens: int,
    skip: int,
    max_length: int | None,
    beside: str | None = None,
) -> dict[str, Any]:
    """The worker's side. Publishes the statistics' folder, unless it is there under the same key; returns its manifest.

    `name`: what reports call the text; the rest is as in calibration_windows. `beside`: a text, of
    a model that matches pictures with texts; its lines are in texts.npy, int64 [lines, window]. Raises JobError.
    """
    if (manifest := store.reusable(folder, key)) is not None:
        return manifest
    import torch

    from exporter.checkpoint.model import load_model

    torch.set_num_threads(threads)
    how = {"text": text, "skip": skip, "tokens": tokens, "max_length": max_length}
    pieces = samples(checkpoint, how)
    statistics = {}
    form = FORMS[checkpoint.task]
    if not form.encodes and not form.matches:  # of which windows alone are asked for: policies collect their own
        model = load_model(checkpoint.path, checkpoint.task, "float32", checkpoint.trust_remote_code).eval()
        statistics = collect(model, pieces, progress)
    count = pieces.numel() if are_tokens(pieces) else None
    about = {"text": name, "tokens": count, "windows": len(pieces), "window": pieces.shape[1]}
    with store.publish(folder) as building:
        save_statistics(statistics, building)
        np.save(building / "windows.npy", pieces.numpy())
        if beside is not None:
            np.save(building / "texts.npy", _lines(checkpoint, beside))
        (building / "calibration.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        return store.write_manifest(building, key, [], about)


def _lines(checkpoint: Checkpoint, text: str) -> NDArray[np.int64]:
    """Lines of a text with their special tokens, each as long as the model takes: padded, or cut."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=checkpoint.trust_remote_code)
    lines = [line for line in text.splitlines() if line.strip()][:_LINES]
    longest = longest_text(read_config(checkpoint.path))
    return np.array(tokenizer(lines, truncation=True, max_length=longest, padding="max_length")["input_ids"], np.int64)


def calibration_windows(tokenizer: Any, text: str, skip: int, tokens: int, max_length: int | None) -> Tensor:
    """The `tokens` after the first `skip` of a text as int64 [windows, window], whole windows of at most WINDOW.

    Windows that are not full are left out, so that there is no padding. Raises JobError where none is full.
    """
    import torch

    ids = tokenizer(text, add_special_tokens=False)["input_ids"][skip : skip + tokens]
    window = min(WINDOW, max_length or WINDOW)
    if len(ids) < window:
        after = f" after the {skip} that are measured on" if skip else ""
        raise JobError(
            f"the calibration text has {len(ids)} tokens{after}, fewer than a window of {window}: "
            "give a longer one with --calib-text"
        )
    return torch.tensor(ids[: len(ids) - len(ids) % window]).view(-1, window)


def paired_windows(tokenizer: Any, text: str, skip: int, tokens: int, max_length: int | None) -> Tensor:
    """The same for a model that makes one text of another, int64 [windows, window]: pairs of PAIR ids in a row.

    Of each the first half is a source and the second its target (exporter.checkpoint.linear.asked), the pieces of the
    text that follow one another, each with the special tokens that the tokenizer puts around it: what those are fed is
    unlike all else. Raises JobError where the text is too short.
    """
    import torch

    window = min(WINDOW, max_length or WINDOW)
    pair = min(PAIR, window)
    sides, taken = [], skip
    for key, length in (("text", pair // 2), ("text_target", pair - pair // 2)):
        before, after = _around(tokenizer, key)
        ids = tokenizer(**{key: text}, add_special_tokens=False)["input_ids"][: skip + tokens]
        sides.append((ids, before, after, length - len(before) - len(after)))
    whole = min(len(ids) for ids, *_ in sides)
    step = sum(inner for *_, inner in sides)
    pairs: list[list[int]] = []
    while taken + step <= whole:
        pairs.append([])
        for ids, before, after, inner in sides:
            pairs[-1] += [*before, *ids[taken : taken + inner], *after]
            taken += inner
    in_window = window // pair
    windows = len(pairs) // in_window
    if not windows:
        raise JobError(
            f"the calibration text has {whole - skip} tokens, fewer than a window of {window}: "
            "give a longer one with --calib-text"
        )
    return torch.tensor(pairs[: windows * in_window]).view(windows, -1)


def _around(tokenizer: Any, key: str) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and after a text: `key` says whether a source or a target."""
    bare, whole = (tokenizer(**{key: "a"}, add_special_tokens=special)["input_ids"] for special in (False, True))
    at = next(place for place in range(len(whole)) if whole[place : place + len(bare)] == bare)
    return whole[:at], whole[at + len(bare) :]


def samples(checkpoint: Checkpoint, text: Mapping[str, Any]) -> Tensor:
    """What a checkpoint is calibrated on: a text's windows, pictures [n, C, H, W] or sounds. Raises JobError."""
    trust = checkpoint.trust_remote_code
    form = FORMS[checkpoint.task]
    if form.inputs == "pixels":
        import torch

        from exporter.checkpoint.pictures import read
        from exporter.checkpoint.processor import pixels, read_processor

        return torch.from_numpy(pixels(read_processor(checkpoint.path, trust), read(text["text"])))
    if form.inputs != "text":
        return of_sounds(checkpoint, text["text"])
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=trust)
    windows = paired_windows if form.encodes else calibration_windows
    return windows(tokenizer, **{key: value for key, value in text.items() if key != "name"})


def of_sounds(checkpoint: Checkpoint, sounds: str) -> Tensor:
    """A list of sounds as their spectrograms float32 [n, mel, frames]; or their samples in pieces of one length, that
    of the shortest and two seconds at most: float32 [n, T].

    What is left over of a sound is left out, so that there is no padding.
    """
    import torch

    from exporter.checkpoint.extractor import all_extracted, rate_of, read_extractor

    extractor = read_extractor(checkpoint.path, checkpoint.trust_remote_code)
    made = all_extracted(extractor, sounds)
    if FORMS[checkpoint.task].inputs == "waveform":
        window = min(_SECONDS * rate_of(extractor), *map(len, made))
        made = [one[at : at + window] for one in made for at in range(0, len(one) - window + 1, window)]
    return torch.from_numpy(np.stack(made))


def policy_windows(checkpoint: Checkpoint, text: Mapping[str, Any]) -> Tensor:
    """What a checkpoint is calibrated on, some of which will be held out. Raises JobError where it is too little."""
    windows = samples(checkpoint, text)
    if len(windows) < FEWEST:
        raise JobError(
            f"{text['name']} is too short: of {windows.shape[1]} tokens each it gives {len(windows)} calibration "
            f"window{'s' * (len(windows) != 1)}, and a policy needs {FEWEST}, for one in four is measured on: raise "
            "--calib-tokens, or give a longer --calib-text"
        )
    return windows
