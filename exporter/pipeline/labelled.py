"""Labelled data (--eval-data): a file's examples in the model's own classes, and as the passages that are measured.

Everything that is guessed, a column or how labels are meant, is told; what does not fit is refused with the choices.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from exporter.checkpoint.problem import problem_type
from exporter.errors import JobError
from exporter.form import FORMS
from exporter.job import Job
from exporter.measure.embedding import Embedding
from exporter.measure.labels import ANSWERS, MIN_EXAMPLES, PAIRS, TAGS, Labels, check_packages
from exporter.measure.quality import Passages
from exporter.pipeline.labelled_tokens import (
    KINDS,
    answered_examples,
    columns_for,
    read_answered,
    read_tagged,
    tagged_examples,
)
from exporter.pipeline.rows import Rows, columns_of, read_rows
from exporter.runner import Ids
from exporter.types import CLASSIFICATION, FEATURES, MULTI_LABEL, REGRESSION, SINGLE_LABEL

_KINDS = {FEATURES: PAIRS, **KINDS}
_SCORED = (CLASSIFICATION, *_KINDS)
_WINDOW = 512  # tokens of an example that are read, where the model takes as many: each is a whole text


@dataclass(frozen=True)
class LabelledData:
    """Examples as they go to the worker that tokenizes them, as JSON.

    `texts` are those of the examples, `pairs` each one's second text (None: there is none); `values` the labels as in
    exporter.measure.labels.Labels. `about` is what the report says of the file.
    """

    kind: str
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    values: tuple[Any, ...]
    names: tuple[str, ...]
    about: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def text(self) -> str:
        """All of it as one text, of sounds their list: what a calibration must not share."""
        return "\n".join((*self.texts, *(self.pairs or ())))


def labelled_data(job: Job, task: str, config: Mapping[str, Any], classes: int | None) -> LabelledData | None:
    """The job's labelled examples; None where it names none. `classes`: of a head that an adapter brings.

    Raises JobError, or MissingPackage.
    """
    if classes is not None and classes != len(class_names(config)):
        config = {**config, "id2label": {number: f"LABEL_{number}" for number in range(classes)}}
    check_gates(job, task, config)
    if job.eval_data is not None and (numbers := sorted(map(int, config.get("id2label") or ()))) != [
        *range(len(numbers))
    ]:
        raise JobError(f"id2label of config.json has the numbers {numbers}: labels can be read where it counts from 0")
    if not is_given(job):
        return None
    if task not in _SCORED:
        scored = "classifiers, taggers, regressors, answers to questions and embeddings"
        raise JobError(f"--eval-data scores {scored}, and this model is for {task}: give --eval-text")
    assert job.eval_data is not None
    path = job.eval_data.expanduser()
    kind = kind_of(task, config)
    check_packages(path, kind)
    rows = read_rows(path)
    if kind in (TAGS, ANSWERS):
        return _of_tokens(job, rows, kind, config)
    columns, guessed = columns_of(job, rows, kind == PAIRS)
    texts = texts_of_column(rows, columns["text"])
    pairs = None if columns["pair"] is None else texts_of_column(rows, columns["pair"])
    if len(texts) < MIN_EXAMPLES:
        raise JobError(f"{path} has {len(texts)} examples, and at least {MIN_EXAMPLES} are needed to score anything")
    names = class_names(config) if kind in (SINGLE_LABEL, MULTI_LABEL) else ()
    values, meant = _labels(rows, columns["label"], kind, names)
    if kind in (REGRESSION, PAIRS) and len({tuple(one) for one in values}) == 1:
        raise JobError(f"{path}: all of {columns['label']} is {values[0][0]:g}: what does not vary orders nothing")
    about = {"file": path.name, "examples": len(texts), "kind": kind, "columns": columns, "guessed": guessed}
    return LabelledData(kind, texts, pairs, values, names, about | {"labels": meant})


def _of_tokens(job: Job, rows: Rows, kind: str, config: Mapping[str, Any]) -> LabelledData:
    """Sentences with tags, or questions with answers."""
    columns, guessed = columns_for(job, rows, kind)
    names = class_names(config) if kind == TAGS else ()
    if kind == TAGS:
        values, meant = tagged_examples(rows, columns, names)
        texts = tuple(" ".join(words) for words, _ in values)
    else:
        values, meant = answered_examples(rows, columns), "texts"
        texts = tuple(text for _, text, _ in values)
    if len(values) < MIN_EXAMPLES:
        raise JobError(f"{rows.path} has {len(values)} examples, and at least {MIN_EXAMPLES} are needed to score any")
    about = {"file": rows.path.name, "examples": len(values), "kind": kind, "columns": columns, "guessed": guessed}
    return LabelledData(kind, texts, None, tuple(values), names, about | {"labels": meant})


def is_given(job: Job) -> bool:
    """Whether a job names a file of examples. Raises JobError where it says of one what cannot be."""
    if job.eval_data is None:
        for name in ("text_column", "pair_column", "label_column"):
            if getattr(job, name) is not None:
                raise JobError(f"--{name.replace('_', '-')} names a column of --eval-data FILE: give that too")
        return False
    if job.eval_text is not None:
        raise JobError("--eval-data and --eval-text are two texts to measure on: give one of them")
    return True


def usual_window(data: LabelledData | None, embedding: Embedding | None) -> int | None:
    """The window of labelled data: what a sentence-transformers folder reads, or long enough for a whole text."""
    if data is None:
        return None
    return min(_WINDOW, embedding.max_length or _WINDOW) if embedding is not None else _WINDOW


def kind_of(task: str, config: Mapping[str, Any]) -> str:
    """What labels of a model are: a classifier's problem type, or PAIRS."""
    if task in _KINDS:
        return _KINDS[task]
    problem = problem_type(config)
    return REGRESSION if problem == SINGLE_LABEL and len(class_names(config)) == 1 else problem


def check_gates(job: Job, task: str, config: Mapping[str, Any]) -> None:
    """A gate whose figure no row could have is a mistake of the job's, told before any work. Raises JobError."""
    kind = "" if job.eval_data is None else task if FORMS[task].cached else kind_of(task, config)
    for name in ("max_accuracy_drop", "max_f1_drop", "max_spearman_drop"):
        if getattr(job, name) is None:
            continue
        flag = f"--{name.replace('_', '-')}"
        if job.eval_data is None:
            raise JobError(f"{flag} is of labelled data: give it with --eval-data FILE")
        ranks = name == "max_spearman_drop"
        if ranks == (kind in (SINGLE_LABEL, MULTI_LABEL, TAGS, ANSWERS)):
            other = "--max-accuracy-drop or --max-f1-drop" if ranks else "--max-spearman-drop"
            raise JobError(f"{flag} is not measured of this model ({kind}): give {other}")


def class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The model's classes, by number: id2label of config.json, which transformers fills up by itself."""
    told = {int(number): str(name) for number, name in (config.get("id2label") or {}).items()}
    count = len(told) or int(config.get("num_labels", 2))
    return tuple(told.get(number, f"LABEL_{number}") for number in range(count))


def texts_of_column(rows: Rows, column: str) -> tuple[str, ...]:
    """Raises JobError for a row without one."""
    for row in rows.rows:
        if not isinstance(row.get(column), str) or not row[column].strip():
            raise JobError(f"{rows.place(row)}: {column} is {row.get(column)!r}: each example needs a text there")
    return tuple(row[column] for row in rows.rows)


def _labels(rows: Rows, column: str, kind: str, names: Sequence[str]) -> tuple[tuple[Any, ...], str]:
    """Each example's values, and how the column was read. Raises JobError for a label that the model does not have."""
    raw = []
    for row in rows.rows:
        if row.get(column) is None or row[column] == "":
            raise JobError(f"{rows.place(row)} has no label in {column}: leave such examples out")
        raw.append(row[column])
    if kind in (REGRESSION, PAIRS):
        return tuple(_number(rows, index, column, value) for index, value in enumerate(raw)), "numbers"
    many = [_listed(value, names) if kind == MULTI_LABEL else [value] for value in raw]
    if kind == MULTI_LABEL and _yes_or_no(many, len(names)):
        return tuple(tuple(float(one) for one in value) for value in many), "yes or no of each label"
    numbered, meant = _reader(many, names)
    found = []
    for index, value in enumerate(many):
        found.append([_found(rows, index, column, one, numbered, names) for one in value])
    if kind == SINGLE_LABEL:
        return tuple(one[0] for one in found), meant
    return tuple(tuple(float(number in one) for number in range(len(names))) for one in found), meant


def _number(rows: Rows, index: int, column: str, value: Any) -> tuple[float, ...]:
    try:
        numbers = tuple(float(one) for one in (value if isinstance(value, list) else [value]))
    except (TypeError, ValueError):
        numbers = (float("nan"),)
    if not numbers or not np.isfinite(numbers).all():
        raise JobError(f"{rows.place(rows.rows[index])}: {column} is {value!r}, and this model answers a number")
    return numbers


def _listed(value: Any, names: Sequence[str]) -> list[Any]:
    """The labels of an example that may have several: a list, or a text of them with commas, bars or semicolons."""
    if isinstance(value, str) and value not in names:
        if value.startswith("["):
            try:
                value = json.loads(value)
            except ValueError:
                return [value]
        else:
            value = [one.strip() for one in re.split(r"[,|;]", value) if one.strip()]
    return value if isinstance(value, list) else [value]


def _yes_or_no(many: Sequence[list[Any]], count: int) -> bool:
    return count > 1 and all(len(value) == count and all(one in (0, 1) for one in value) for value in many)


def _reader(many: Sequence[list[Any]], names: Sequence[str]) -> tuple[dict[str, int], str]:
    """What each word of the column means: names where all are, else numbers where all are; and how that is told."""
    words = {str(one) for value in many for one in value}
    exact = {name: number for number, name in enumerate(names)}
    if words <= set(exact):
        return exact, "names"
    folded: dict[str, int] = {name.casefold(): number for name, number in exact.items()}
    if len(folded) == len(names) and {word.casefold() for word in words} <= set(folded):
        return {word: folded[word.casefold()] for word in words}, "names, without regard to upper and lower case"
    numbers = {word: int(float(word)) for word in words if re.fullmatch(r"\d+(\.0)?", word)}
    if len(numbers) == len(words):
        return {word: number for word, number in numbers.items() if number < len(names)}, "numbers of the classes"
    return exact, "names"


def _found(rows: Rows, index: int, column: str, value: Any, numbered: Mapping[str, int], names: Sequence[str]) -> int:
    if (number := numbered.get(str(value))) is not None:
        return number
    listed = ", ".join(f"{number} {name}" for number, name in enumerate(names[:20])) + (" …" if len(names) > 20 else "")
    raise JobError(
        f"{rows.place(rows.rows[index])}: {column} is {value!r}, which is no label of this model; it has: {listed}"
    )


_READ = {TAGS: read_tagged, ANSWERS: read_answered}


def tokenize_examples(
    tokenizer: Any, data: Mapping[str, Any], task: str, window: int, embedding: Embedding | None = None
) -> tuple[Passages, Labels, int]:
    """Each example as a passage (of embeddings two), its labels, and how many were cut at the window.

    A classifier's pair is one passage, with the segments that its tokenizer tells apart. A text of `embedding` is read
    as its settings say.
    """
    if data["kind"] in _READ:
        return _READ[data["kind"]](tokenizer, data, window)
    texts, pairs = data["texts"], data["pairs"]
    if task == CLASSIFICATION:
        asked = [(text,) for text in texts] if pairs is None else list(zip(texts, pairs, strict=True))
    else:
        asked = [(text,) for both in zip(texts, pairs, strict=True) for text in both]
        if embedding is not None:
            asked = [(embedding.read(text),) for (text,) in asked]
    pieces: list[Ids] = []
    segments: list[Ids] = []
    cut = 0
    for one in asked:
        told = tokenizer(*one)
        if len(told["input_ids"]) > window:
            cut += 1
            told = tokenizer(*one, truncation=True, max_length=window)
        pieces.append(np.array(told["input_ids"], np.int64))
        segments.append(np.array(told.get("token_type_ids", [0] * len(pieces[-1])), np.int64))
    offsets = np.cumsum([0, *map(len, pieces)]).astype(np.int64)
    joined = np.concatenate(segments)
    labels = Labels(data["kind"], np.array(data["values"], np.float64), tuple(data["names"]))
    told_apart = joined if joined.any() else None
    return Passages(task, np.concatenate(pieces), offsets, window, window, segments=told_apart), labels, cut
