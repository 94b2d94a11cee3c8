"""A worker's operation: the float reference's answers to all that artifacts will be asked, stored in a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.checkpoint.encoder_decoder import start_of
from exporter.checkpoint.load import read_config
from exporter.checkpoint.problem import problem_of
from exporter.checkpoint.tokenizer import check_ids
from exporter.device import named
from exporter.errors import JobError
from exporter.form import FORMS
from exporter.measure.embedding import EMBEDDING, Embedding, read_embedding
from exporter.measure.generation import itself
from exporter.measure.labels import LABELS, Labels
from exporter.measure.lengths import LENGTHS, Length, Lengths, Told, cuts_of, positions, shape_of, told_of
from exporter.measure.perplexity import PERPLEXITY
from exporter.measure.quality import ANSWERS, Passages, Reference, mean_pooled, reference_perplexity
from exporter.measure.scored import doubt, score
from exporter.measure.tokenization import TOKENIZED, TokenizedTexts
from exporter.pipeline.covering import facts_of, forms_of
from exporter.pipeline.generating import KEY, continued
from exporter.pipeline.labelled import tokenize_examples
from exporter.pipeline.sampling import reference_samples, sampled, save_samples
from exporter.process import Session
from exporter.progress import counting
from exporter.runner import Floats, Ids
from exporter.store import publish, reusable, write_manifest
from exporter.tasks import known as tasks
from exporter.tasks.text2text_generation import pairs_of
from exporter.types import GENERATION, Checkpoint, Probe

if TYPE_CHECKING:
    from exporter.checkpoint.opened import TorchRunner

_ROUNDING = 1e-5  # of the largest answer: float32's, of sums in another order
_CLASSIFIED = 4  # texts beyond each boundary, of what answers once a text
_PROBE_LENGTHS = (17, 5, 11)  # none that a graph was traced at, and different: a batch of them is padded


def measure_reference(
    session: Session,
    checkpoint: Checkpoint,
    folder: str,
    key: str,
    threads: int,
    text: str,
    eval_tokens: int,
    window: int,
    stride: int,
    lengths: Sequence[dict[str, Any]] = (),
    unproven: Sequence[tuple[int, str]] = (),
    data: dict[str, Any] | None = None,
    modules: str | None = None,
    samples: Sequence[str] | None = None,
    perplexity: Sequence[str] = (),
    generation: bool = False,
    max_length: int | None = None,
    gpu: int | None = None,
) -> dict[str, Any]:
    """A worker's operation: publishes the reference's folder, unless it is there under its key; its manifest."""
    if (manifest := reusable(Path(folder), key)) is None:
        from exporter.targets.torch.target import open_checkpoint

        tokenizer = _tokenizer(checkpoint)
        problem = problem_of(checkpoint.path, checkpoint.task)
        embedding = None if modules is None else read_embedding(Path(modules))
        passages, labels, cut = _read(checkpoint, tokenizer, text, data, embedding, (eval_tokens, window, stride))
        passages = replace(passages, problem_type=problem)
        forms = forms_of(tokenizer, text, passages, perplexity)
        tokenized = TokenizedTexts.of(tokenizer, text)
        how: dict[str, Any] = {"trust": checkpoint.trust_remote_code, "gpu": gpu}
        opened = partial(open_checkpoint, checkpoint.path, checkpoint.task, threads, **how)
        with opened() as runner:
            check_ids(runner.rows(), passages.ids, "the evaluation's text")
            if passages.sources is not None:
                check_ids(runner.rows(), passages.sources, "the evaluation's sources")
            pool = mean_pooled if embedding is None else embedding.vector
            answers = tasks.answer(runner, passages, session.counted("reference"), pool)
            probe = _probe(runner, passages, tokenizer.pad_token_id or 0)
            reference = Reference(passages, probe, answers)
            tried = sampled(checkpoint, tokenizer, text, samples, runner, max_length)
            if generation and FORMS[checkpoint.task].cached:
                tried |= continued(runner, tokenizer, passages, tried["stop"], max_length)
            facts = {"parameters": runner.parameters(), "engine": runner.engine, "checkpoint": str(checkpoint.path)}
            facts["device"] = named(gpu)
            facts |= {"model_sha256": checkpoint.sha256, "task": checkpoint.task}
        own = reference_perplexity(reference.answers)
        scored = len(answers.nll) or len(answers.vectors)
        if FORMS[checkpoint.task].unit == "passage":
            scored = len(passages.offsets) - 1
        if not all(np.isfinite(array).all() for array in (reference.answers.nll, reference.answers.vectors)):
            raise JobError("the float model answers NaN or Inf on the text: no artifact can be compared with it")
        beyond = counting(lengths, session.counted("reference beyond its boundaries"))
        told = [_told(opened, checkpoint.task, tokenizer, text, one) for one in beyond]
        reach = int(min(window, np.diff(passages.offsets).max()))
        facts |= {"scored": scored, "tokens": len(passages.ids), "perplexity": facts_of(forms, reference.answers.nll)}
        facts["samples"] = reference_samples(tried)
        facts["generation"] = itself(tried[KEY]) if KEY in tried else None
        facts["pooling"] = None if embedding is None else embedding.words()
        facts |= {"ppl": own.value, "ppl_se": own.se, "problem_type": problem}
        facts |= _labelled(labels, data, cut, reference.answers.vectors)
        with publish(Path(folder)) as building:
            reference.save(building / ANSWERS)
            save_samples(tried, tokenizer, building)
            if forms is not None:
                forms.save(building / PERPLEXITY)
            if labels is not None:
                labels.save(building / LABELS)
            if embedding is not None:
                embedding.save(building / EMBEDDING)
            tokenized.save(building / TOKENIZED)
            Lengths(reach, tuple(told), tuple((int(far), name) for far, name in unproven)).save(building / LENGTHS)
            manifest = write_manifest(building, key, [], facts)
    return manifest


def _read(
    checkpoint: Checkpoint,
    tokenizer: Any,
    text: str,
    data: dict[str, Any] | None,
    embedding: Embedding | None,
    sizes: tuple[int, int, int],
) -> tuple[Passages, Labels | None, int]:
    """What is measured on, with the labels of labelled data, and how many examples the window cut. Raises JobError.

    `sizes`: tokens, window and stride.
    """
    task, (eval_tokens, window, stride) = checkpoint.task, sizes
    if FORMS[task].encodes:
        if data is None:
            passages, cut = tasks.TASKS[task].read(tokenizer, text, eval_tokens, window, stride), 0
        else:
            passages, cut = pairs_of(tokenizer, list(zip(data["texts"], data["pairs"], strict=True)), window)
        return replace(passages, start=start_of(read_config(checkpoint.path))), None, cut
    if data is None:
        return tasks.TASKS[task].read(tokenizer, text, eval_tokens, window, stride), None, 0
    return tokenize_examples(tokenizer, data, task, window, embedding)


def _labelled(labels: Labels | None, data: dict[str, Any] | None, cut: int, vectors: Floats) -> dict[str, Any]:
    """What the manifest says of labelled data, or of pairs; nothing where there is neither."""
    if data is None:
        return {}
    if labels is None:
        return {"data": data["about"] | {"cut": cut, "note": None}}
    figures = score(labels, vectors)
    told = {"labelled": {name: asdict(figure) for name, figure in figures.items()}}
    return told | {"data": data["about"] | {"cut": cut, "note": doubt(labels, figures)}}


def _probe(runner: Any, passages: Passages, pad: int) -> Probe:
    ids, mask = _probe_ids(passages, pad)
    if passages.sources is None or passages.source_offsets is None:
        together = runner.batch(ids, mask)
        return Probe(ids, mask, together, _alone(runner, ids, mask, together))
    # The other way round: the longest source has not the longest target.
    read = replace(passages, ids=passages.sources, offsets=passages.source_offsets)
    sources, source_mask = (array[::-1].copy() for array in _probe_ids(read, pad))
    return Probe(ids, mask, runner.paired(sources, source_mask, ids), None, sources, source_mask)


def _alone(runner: TorchRunner, ids: Ids, mask: Ids, together: Floats) -> Floats | None:
    """The reference's answers to each of the probe's sequences without its padding; None where they are the same."""
    if together.ndim == 2:  # a classifier's, of which only batches are compared
        return None
    found = np.zeros_like(together)
    for row, length in enumerate(mask.sum(axis=1)):
        found[row, :length] = runner.logits(ids[row, :length])
    real, largest = mask.astype(bool), float(np.abs(together[np.isfinite(together)]).max(initial=1.0))
    return None if np.allclose(found[real], together[real], rtol=0, atol=_ROUNDING * largest) else found


def _told(opened: Callable[[], TorchRunner], task: str, tokenizer: Any, text: str, one: dict[str, Any]) -> Told:
    """The reference's answers around one boundary, of a model that has read nothing before."""
    boundary, tokens = int(one["boundary"]), int(one["tokens"])
    count, short = shape_of(boundary, tokens)
    far = _texts(tokenizer, text, task, 1 if FORMS[task].per_token else _CLASSIFIED, tokens)
    near = _texts(tokenizer, text, task, count, short)
    at, cuts = positions(boundary, tokens, task), cuts_of(boundary, tokens, one["switch"], task)
    length = Length(one["name"], boundary, near, far, at, cuts)
    return told_of(opened, length, task)


def _texts(tokenizer: Any, text: str, task: str, count: int, tokens: int) -> Ids:
    """[count, tokens] ids from all over a text, which is repeated where it is too short."""
    if task == GENERATION:
        ids = np.array(tokenizer(text)["input_ids"], np.int64)
        starts = np.linspace(0, max(len(ids) - tokens, 0), count).astype(np.int64)
        return np.stack([np.resize(ids[start:], tokens) for start in starts])
    pieces: list[list[int]] = []
    while len(pieces) < count:
        cut = tokenizer(text, truncation=True, max_length=tokens, return_overflowing_tokens=True)["input_ids"]
        cut = cut if isinstance(cut[0], list) else [cut]
        pieces = [piece for piece in cut if len(piece) == tokens]
        text = f"{text}\n{text}"
    return np.array([pieces[i] for i in np.linspace(0, len(pieces) - 1, count).astype(int)], np.int64)


def _tokenizer(checkpoint: Checkpoint) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=checkpoint.trust_remote_code)


def _probe_ids(passages: Passages, pad: int) -> tuple[Ids, Ids]:
    """[3, 17] ids and mask: short sequences from different places of the text, padded on the right."""
    longest = max(_PROBE_LENGTHS)
    ids, mask = (
        np.full((len(_PROBE_LENGTHS), longest), pad, np.int64),
        np.zeros((len(_PROBE_LENGTHS), longest), np.int64),
    )
    for row, length in enumerate(_PROBE_LENGTHS):
        start = int(passages.offsets[row % (len(passages.offsets) - 1)]) + (
            row * longest if len(passages.offsets) == 2 else 0
        )
        ids[row, :length] = passages.ids[start : start + length]
        mask[row, :length] = 1
    return ids, mask
