"""Labelled data of tasks that answer for each token: sentences with tags, and questions with their answers.

A tagger's examples are words with a tag each, as CoNLL's data sets have them (tokens, ner_tags); those of question
answering are SQuAD's: question, context and answers, {"text": […], "answer_start": […]}, none where there is no answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from exporter.errors import JobError, unknown
from exporter.form import QUESTIONS, TOKENS
from exporter.job import Job
from exporter.measure.labels import ANSWERS, TAGS, Labels
from exporter.measure.quality import Passages
from exporter.pipeline.rows import Rows
from exporter.runner import Ids
from exporter.tasks.question_answering import pairs_of
from exporter.tasks.task import passages_of

KINDS = {TOKENS: TAGS, QUESTIONS: ANSWERS}  # what labels of a task are
_COLUMNS = {
    TAGS: {"text": ("tokens", "words"), "label": ("ner_tags", "tags", "pos_tags", "chunk_tags", "labels")},
    ANSWERS: {"text": ("context", "passage", "text"), "pair": ("question", "query"), "label": ("answers", "answer")},
}


def columns_for(job: Job, rows: Rows, kind: str) -> tuple[dict[str, Any], list[str]]:
    """The columns of text, pair (the question) and label, and which were guessed. Raises JobError."""
    asked = {"text": job.text_column, "pair": job.pair_column, "label": job.label_column}
    found: dict[str, Any] = dict.fromkeys(asked)
    for what, usual in _COLUMNS[kind].items():
        if asked[what] is not None and asked[what] not in rows.columns:
            raise JobError(f"--{what}-column: {unknown(f'column of {rows.path.name}', str(asked[what]), rows.columns)}")
        found[what] = asked[what] or next((name for name in usual if name in rows.columns), None)
        if found[what] is None:
            others = ", ".join(rows.columns)
            raise JobError(f"which column of {rows.path.name} is the {what}? Give --{what}-column; there are: {others}")
    return found, [what for what, name in found.items() if name is not None and asked[what] is None]


def tagged_examples(rows: Rows, columns: Mapping[str, Any], names: Sequence[str]) -> tuple[list[Any], str]:
    """[words, numbers of their classes] of each example, and how labels were read. Raises JobError."""
    numbered = {name: number for number, name in enumerate(names)}
    examples: list[Any] = []
    meant = "numbers of the classes"
    for row in rows.rows:
        words: Any = row.get(columns["text"])
        tags: Any = row.get(columns["label"])
        if not _one_each(words, tags):
            raise JobError(
                f"{rows.place(row)}: {columns['text']} and {columns['label']} must be lists of the same length, "
                'such as {"tokens": ["Ada", "spoke"], "ner_tags": ["B-PER", "O"]}'
            )
        if any(isinstance(tag, str) for tag in tags):
            meant = "names"
        found = [numbered.get(tag) if isinstance(tag, str) else tag for tag in tags]
        for tag, number in zip(tags, found, strict=True):
            if not isinstance(number, int) or not 0 <= number < len(names):
                raise JobError(f"{rows.place(row)}: {tag!r} is no label of this model; it has: {', '.join(names[:20])}")
        examples.append([words, found])
    return examples, meant


def _one_each(words: Any, tags: Any) -> bool:
    """Whether both are lists, of as many words as tags."""
    lists = isinstance(words, list) and isinstance(tags, list)
    return lists and 0 < len(words) == len(tags) and all(isinstance(word, str) for word in words)


def answered_examples(rows: Rows, columns: Mapping[str, Any]) -> list[Any]:
    """[question, text, right answers] of each example; [""] where the text has none. Raises JobError."""
    examples: list[Any] = []
    for row in rows.rows:
        question, text, answers = (row.get(columns[what]) for what in ("pair", "text", "label"))
        if not (isinstance(question, str) and isinstance(text, str) and question.strip() and text.strip()):
            raise JobError(f"{rows.place(row)}: {columns['pair']} and {columns['text']} must be texts")
        said = answers.get("text") if isinstance(answers, dict) else answers
        right = [said] if isinstance(said, str) else said
        if not isinstance(right, list) or not all(isinstance(one, str) for one in right):
            raise JobError(
                f"{rows.place(row)}: {columns['label']} is {answers!r}: give SQuAD's "
                '{"text": ["…"], "answer_start": [0]}, or a text'
            )
        examples.append([question, text, right or [""]])
    return examples


def read_tagged(tokenizer: Any, data: Mapping[str, Any], window: int) -> tuple[Passages, Labels, int]:
    """Each sentence as a passage, of which the first token of each word is compared; and how many were cut."""
    pieces: list[Ids] = []
    places: list[int] = []
    values: list[int] = []
    bounds, start, cut = [0], 0, 0
    for words, tags in data["values"]:
        told = tokenizer(words, is_split_into_words=True)
        if len(told["input_ids"]) > window:
            cut += 1
            told = tokenizer(words, is_split_into_words=True, truncation=True, max_length=window)
        of_words = told.word_ids()
        for place, word in enumerate(of_words):
            if word is not None and (place == 0 or of_words[place - 1] != word):
                places.append(start + place)
                values.append(tags[word])
        pieces.append(np.array(told["input_ids"], np.int64))
        start += len(pieces[-1])
        bounds.append(len(places))
    labels = Labels(TAGS, np.array(values, np.float64), tuple(data["names"]), tuple(bounds))
    return passages_of(TOKENS, pieces, window, window, compared=np.array(places, np.int64)), labels, cut


def read_answered(tokenizer: Any, data: Mapping[str, Any], window: int) -> tuple[Passages, Labels, int]:
    """Each question with its text as a passage, and where each compared token stands in that text."""
    pairs = [(question, text) for question, text, _ in data["values"]]
    passages, places = pairs_of(tokenizer, pairs, window)
    assert passages.compared is not None
    bounds = np.searchsorted(passages.compared, passages.offsets)
    texts = tuple(json.dumps([text, answers], ensure_ascii=False) for _, text, answers in data["values"])
    labels = Labels(ANSWERS, places, (), tuple(bounds.tolist()), texts)
    return passages, labels, sum(len(tokenizer(*pair)["input_ids"]) > window for pair in pairs)
