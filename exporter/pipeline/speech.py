"""A model that hears and has a decoder: the reference's transcripts and answers, and an artifact's transcripts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from exporter.checkpoint import sounds
from exporter.checkpoint.extractor import rate_of, read_extractor
from exporter.checkpoint.speech import Transcribing, transcribing
from exporter.checkpoint.tokenizer import check_ids
from exporter.device import named
from exporter.errors import JobError
from exporter.measure.labels import LABELS, TRANSCRIPTS, Labels
from exporter.measure.lengths import LENGTHS, Lengths
from exporter.measure.quality import ANSWERS, Passages, Reference, reference_perplexity
from exporter.measure.samples import changed_transcripts
from exporter.measure.transcripts import agreed, plain, word_errors
from exporter.pipeline.sampling import decoders, save_samples
from exporter.pipeline.sounds import HEARD, keep_extracted, labelled
from exporter.process import Session
from exporter.report.result import Figure
from exporter.runner import Ids, Runner
from exporter.store import publish, reusable, write_manifest
from exporter.tasks import known as tasks
from exporter.tasks.speech_recognition import transcript, with_targets
from exporter.types import Checkpoint, Probe

Pieces = list[tuple[list[int], list[int]]]  # of each sound the tokens that are given, and those of its text
_PROBED = (17, 5, 11)  # tokens of the first sounds' texts: none that a graph was traced at, and different


def measure_speech(
    session: Session,
    checkpoint: Checkpoint,
    folder: str,
    key: str,
    threads: int,
    text: str,
    data: dict[str, Any] | None = None,
    gpu: int | None = None,
) -> dict[str, Any]:
    """A worker's operation: publishes the reference's folder, unless it is there under its key; its manifest.

    `text` is the list of sounds, `data` what is said in them, where that is known.
    """
    if (manifest := reusable(Path(folder), key)) is not None:
        return manifest
    from transformers import AutoTokenizer

    from exporter.checkpoint.opened import open_checkpoint

    path, trust = checkpoint.path, checkpoint.trust_remote_code
    extractor, how = read_extractor(path, trust), transcribing(path)
    load: Any = AutoTokenizer.from_pretrained  # which transformers leaves untyped
    tokenizer = load(path, trust_remote_code=trust)
    if data is not None:
        _check_lengths(extractor, text)
    read: Passages = tasks.TASKS[checkpoint.task].read(extractor, text, 0, 0, 0)
    with open_checkpoint(path, checkpoint.task, threads, trust=trust, gpu=gpu) as runner:
        heard = list(_heard(runner, how, read, session.counted("transcripts of the reference")))
        said = None if data is None else [str(one) for one in data["values"]]
        targets, cut = (heard, 0) if said is None else _targets(tokenizer, how, heard, said)
        passages = with_targets(read, how.start, targets)
        check_ids(runner.rows(), passages.ids, "what is said in the sounds")
        answers = tasks.answer(runner, passages, session.counted("reference"))
        probe = _probe(runner, passages)
        facts: dict[str, Any] = {"parameters": runner.parameters(), "engine": runner.engine}
    if not all(np.isfinite(array).all() for array in (answers.nll, answers.vectors)):
        raise JobError("the float model answers NaN or Inf on the sounds: no artifact can be compared with it")
    own = reference_perplexity(answers)
    facts |= {"checkpoint": str(path), "device": named(gpu), "model_sha256": checkpoint.sha256}
    facts |= {"task": checkpoint.task, "problem_type": "", "scored": len(answers.nll), "tokens": None}
    facts |= {"ppl": own.value, "ppl_se": own.se, "samples": None, "pooling": None}
    with publish(Path(folder)) as building:
        Reference(passages, probe, answers).save(building / ANSWERS)
        told = {"prompts": [], "stop": [], "names": [], HEARD: sounds.names(text), "transcribing": asdict(how)}
        save_samples(told, tokenizer, building)
        written = _written(decoders(building, checkpoint)[1], heard)
        save_samples(told | {"transcripts": written}, tokenizer, building)
        keep_extracted(extractor, text, len(_PROBED), building)
        if data is not None and said is not None:
            Labels(TRANSCRIPTS, np.zeros(0), texts=tuple(said)).save(building / LABELS)
            facts |= labelled(data, [*map(plain, said)], [*map(plain, written)], cut)
        Lengths(0).save(building / LENGTHS)  # a sound is no text of some length
        return write_manifest(building, key, [], facts)


def _check_lengths(extractor: Any, text: str) -> None:
    """Raises JobError for a sound whose end the model does not hear, though it is known what is said there."""
    rate, longest = rate_of(extractor), extractor.n_samples
    for name, sound in zip(sounds.names(text), sounds.read(text, rate), strict=True):
        if len(sound) > longest:
            raise JobError(
                f"{name} lasts {len(sound) / rate:.1f} s, and the model reads {longest / rate:g} s at once: "
                "cut the sound and what is said in it, or leave its line out of --eval-data"
            )


def heard_by(
    runner: Runner,
    folder: Path,
    checkpoint: Checkpoint,
    reference: Reference,
    told: dict[str, Any],
    progress: Callable[[int, int], None],
) -> tuple[dict[str, Figure], dict[str, Any]]:
    """An artifact's transcripts beside those in the reference's `folder`: figures, and some that differ."""
    how = Transcribing.load(told["transcribing"])
    got = _written(decoders(folder, checkpoint)[1], list(_heard(runner, how, reference.passages, progress)))
    figures = agreed(told["transcripts"], got)
    said = Labels.load(folder / LABELS).texts if (folder / LABELS).is_file() else None
    if said is not None:
        figures |= word_errors([*map(plain, said)], [*map(plain, told["transcripts"])], [*map(plain, got)])
    return figures, changed_transcripts(told[HEARD], told["transcripts"], got, said)


def _heard(
    runner: Runner, how: Transcribing, passages: Passages, progress: Callable[[int, int], None]
) -> Iterator[tuple[list[int], list[int]]]:
    assert passages.source_offsets is not None
    count = len(passages.source_offsets) - 1
    for number in range(count):
        yield transcript(runner, how, passages.source(number))
        progress(number + 1, count)


def _written(decode: Callable[[Sequence[int]], str], heard: Pieces) -> list[str]:
    return [decode(text).strip() for _, text in heard]


def _targets(tokenizer: Any, how: Transcribing, heard: Pieces, said: Sequence[str]) -> tuple[Pieces, int]:
    """What is said, as tokens behind the prompt that the reference found for its sound; how many texts were cut."""
    made, cut = [], 0
    for (prompt, _), text in zip(heard, said, strict=True):
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], how.stop[0]]
        room = how.longest - len(prompt) - 1
        cut += len(ids) > room
        made.append((prompt, [int(one) for one in ids[:room]]))
    return made, cut


def _probe(runner: Any, passages: Passages) -> Probe:
    """The first sounds, each with so many of the tokens that a decoder is given."""
    assert passages.source_offsets is not None
    given = np.concatenate([passages.decoded(number) for number in range(len(passages.offsets) - 1)])
    ids, mask = np.zeros((len(_PROBED), max(_PROBED)), np.int64), np.zeros((len(_PROBED), max(_PROBED)), np.int64)
    for row, length in enumerate(_PROBED):
        ids[row, :length], mask[row, :length] = np.resize(given, length), 1
        given = np.roll(given, -length)
    sources = np.stack([passages.source(number) for number in range(len(_PROBED))])
    told: Ids = np.ones(sources.shape[:2], np.int64)  # no spectrogram has padding
    return Probe(ids, mask, runner.paired(sources, told, ids), None, sources, told)
