"""A model that hears: the reference's answers to sounds, an artifact's extractor beside its own, and transcripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from exporter.checkpoint import sounds
from exporter.checkpoint.ctc import Transcribe, transcriber
from exporter.checkpoint.extractor import extracted, rate_of, read_extractor
from exporter.device import named
from exporter.errors import JobError
from exporter.measure.extraction import EXTRACTED, Extracted, compare_extractor
from exporter.measure.labels import LABELS, TRANSCRIPTS, Labels
from exporter.measure.lengths import LENGTHS, Lengths
from exporter.measure.preprocessing import FIGURE
from exporter.measure.quality import ANSWERS, Passages, Reference
from exporter.measure.samples import changed_transcripts
from exporter.measure.transcripts import agreed, word_errors
from exporter.pipeline.sampling import write_samples
from exporter.process import Session
from exporter.report.result import Figure
from exporter.runner import Floats, Ids
from exporter.store import publish, reusable, write_manifest
from exporter.tasks import known as tasks
from exporter.types import Checkpoint, Probe

_PROBED = 3  # sounds at once: no batch that a graph was traced at
_EXTRACTED = 4  # sounds that extractors are compared on
HEARD = "sounds"  # their names, in samples.json
_HOPELESS = 1.0  # word errors for each word that was said: what is heard has nothing to do with it


def measure_sounds(
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
    from exporter.checkpoint.opened import open_checkpoint

    path, trust = checkpoint.path, checkpoint.trust_remote_code
    extractor, transcribe = read_extractor(path, trust), transcriber(path, trust)
    passages: Passages = tasks.TASKS[checkpoint.task].read(extractor, text, 0, 0, 0)
    with open_checkpoint(path, checkpoint.task, threads, trust=trust, gpu=gpu) as runner:
        answers = tasks.answer(runner, passages, session.counted("reference"))
        heard = _probed(passages)
        mask = np.ones(heard.shape, np.int64)
        probe = Probe(heard, mask, runner.batch(heard, mask))
        facts: dict[str, Any] = {"parameters": runner.parameters(), "engine": runner.engine}
    if not np.isfinite(answers.vectors).all():
        raise JobError("the float model answers NaN or Inf on the sounds: no artifact can be compared with it")
    assert answers.bounds is not None
    written = transcripts_of(transcribe, answers.vectors, answers.bounds)
    facts |= {"checkpoint": str(path), "device": named(gpu), "model_sha256": checkpoint.sha256}
    facts |= {"task": checkpoint.task, "problem_type": "", "scored": len(answers.vectors), "tokens": None}
    facts |= dict.fromkeys(("ppl", "ppl_se", "samples", "pooling"))
    labels = None if data is None else Labels(TRANSCRIPTS, np.zeros(0), texts=tuple(map(str, data["values"])))
    if data is not None and labels is not None:
        facts |= labelled(data, labels.texts, written)
    with publish(Path(folder)) as building:
        Reference(passages, probe, answers).save(building / ANSWERS)
        keep_extracted(extractor, text, _EXTRACTED, building)
        told = {"prompts": [], "stop": [], "names": [], HEARD: sounds.names(text), "transcripts": written}
        write_samples(told, building)
        if labels is not None:
            labels.save(building / LABELS)
        Lengths(0).save(building / LENGTHS)  # a sound is no text of some length
        return write_manifest(building, key, [], facts)


def keep_extracted(extractor: Any, text: str, count: int, folder: Path) -> None:
    """The first sounds of a list, and what the checkpoint's extractor makes of them, beside the reference."""
    rate = rate_of(extractor)
    tried = tuple(islice(sounds.read(text, rate), count))
    Extracted(rate, tried, tuple(extracted(extractor, one, rate) for one in tried)).save(folder / EXTRACTED)


def _probed(passages: Passages) -> Floats:
    """[3, T] float32: the first sounds, as long as the shortest of them, for a batch has no padding here."""
    first = [one for _, one in zip(range(_PROBED), passages, strict=False)]
    return np.stack([one[: min(map(len, first))] for one in first])


def labelled(data: dict[str, Any], said: Sequence[str], written: Sequence[str], cut: int = 0) -> dict[str, Any]:
    """What the manifest says of sounds whose transcripts are known, beside what the reference writes."""
    figures = word_errors(said, written, written)
    figures["wer_rise"] = Figure(0.0)
    wer, note = figures["wer"].value or 0.0, None
    if wer >= _HOPELESS:
        note = f"of the words that are said it gets none right (word error rate {wer:.2f}): are they of these sounds?"
    told = {name: asdict(figure) for name, figure in figures.items()}
    return {"labelled": told, "data": data["about"] | {"cut": cut, "note": note}}


def transcripts_of(transcribe: Transcribe, frames: Floats, bounds: Ids) -> list[str]:
    """Of each sound, by where its frames begin."""
    return [transcribe(frames[begin:end]) for begin, end in pairwise(bounds)]


def heard(
    folder: Path, checkpoint: Checkpoint, reference: Reference, frames: Floats, told: dict[str, Any]
) -> tuple[dict[str, Figure], dict[str, Any]]:
    """An artifact's transcripts beside the reference's, in the reference's `folder`: figures, and some that differ."""
    assert reference.answers.bounds is not None
    transcribe = transcriber(checkpoint.path, checkpoint.trust_remote_code)
    got = transcripts_of(transcribe, frames, reference.answers.bounds)
    expected = told["transcripts"]
    figures = agreed(expected, got)
    said = Labels.load(folder / LABELS).texts if (folder / LABELS).is_file() else None
    if said is not None:
        figures |= word_errors(said, expected, got)
    return figures, changed_transcripts(told[HEARD], expected, got, said)


def extracts(folder: Path, checkpoint: Checkpoint, reference: Path) -> dict[str, Figure]:
    """How an artifact's own extractor differs from the checkpoint's, beside the reference; {}: it has none there."""
    if not (reference / EXTRACTED).is_file():
        return {}
    told = Extracted.load(reference / EXTRACTED)
    try:
        own = read_extractor(folder, checkpoint.trust_remote_code)
        return compare_extractor(partial(extracted, own), told)
    except JobError as error:  # of the artifact, not of the job: its users would meet the same
        worst = float(max(np.abs(one).max() for one in told.inputs))
        return {FIGURE: Figure(worst, detail=" ".join(str(error).split()))}
