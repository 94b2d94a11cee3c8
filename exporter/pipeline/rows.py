"""A file of examples, a row each: JSON lines, CSV or Parquet, and which of its columns is what."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.errors import JobError, not_utf8, unknown
from exporter.job import Job

# What data sets call two texts that belong together, and one that stands alone; the first that is there is taken.
_TOGETHER = (
    ("text", "text_pair"), ("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("premise", "hypothesis"),
    ("text1", "text2"), ("text_a", "text_b"), ("question1", "question2"), ("query", "passage"), ("query", "document"),
    ("query", "text"), ("question", "sentence"), ("question", "answer"), ("question", "passage"),
    ("anchor", "positive"), ("sent1", "sent2"),
)  # fmt: skip
_ALONE = ("text", "sentence", "content", "review", "comment", "document", "tweet", "title", "question", "query")
_LABEL = (
    "label", "labels", "score", "similarity", "similarity_score", "relatedness_score", "target", "class", "category",
    "rating", "stars", "sentiment", "intent", "emotion",
)  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """The rows of a file, and where each is in it."""

    path: Path
    columns: tuple[str, ...]
    rows: Sequence[dict[str, Any]]
    lines: Sequence[int]
    unit: str  # line, or row

    def place(self, row: dict[str, Any]) -> str:
        number = next(index for index, one in enumerate(self.rows) if one is row)
        return f"{self.path}, {self.unit} {self.lines[number]}"


def read_rows(path: Path) -> Rows:
    """Raises JobError for a file that cannot be read, is empty, or has rows of different columns."""
    if path.suffix not in KINDS:
        raise JobError(f"--eval-data {path}: give a file whose name ends in {', '.join(KINDS)}")
    try:
        rows = KINDS[path.suffix](path)
    except UnicodeDecodeError as error:
        raise not_utf8(path, error, f"data{path.suffix}") from error
    except OSError as error:
        raise JobError(f"cannot read the labelled data {path}: {error.strerror or error}") from error
    if not rows.rows:
        raise JobError(f"{path} has no examples")
    return rows


def _json_lines(path: Path) -> Rows:
    rows, lines = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise JobError(f"{path}, line {number} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise JobError(f'{path}, line {number} is no object such as {{"text": "…", "label": "…"}}')
        rows.append(row)
        lines.append(number)
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return Rows(path, columns, rows, lines, "line")


def _csv(path: Path) -> Rows:
    rows, lines = [], []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise JobError(f"{path}, line {reader.line_num} has other columns than the first line's")
                rows.append(dict(row))
                lines.append(reader.line_num)
        except csv.Error as error:
            raise JobError(f"{path}, line {reader.line_num} is no CSV: {error}") from error
        columns = tuple(reader.fieldnames or ())
    if len(set(columns)) < len(columns):
        raise JobError(f"{path} has two columns of one name: {', '.join(columns)}")
    return Rows(path, columns, rows, lines, "line")


def _parquet(path: Path) -> Rows:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except pa.ArrowInvalid as error:
        raise JobError(f"{path} is no Parquet file: {' '.join(str(error).split())[:200]}") from error
    rows = table.to_pylist()
    return Rows(path, tuple(table.column_names), rows, range(1, len(rows) + 1), "row")


def columns_of(job: Job, rows: Rows, paired: bool) -> tuple[dict[str, Any], list[str]]:
    """The columns of text, pair (or None) and label, and which of them were guessed. `paired`: there must be a pair.

    Raises JobError with the columns that there are, where one is not there or none can be guessed.
    """
    asked = {"text": job.text_column, "pair": job.pair_column, "label": job.label_column}
    for what, name in asked.items():
        if name is not None and name not in rows.columns:
            raise JobError(f"--{what}-column: {unknown(f'column of {rows.path.name}', name, rows.columns)}")
    found = dict(asked)
    if found["text"] is None or (paired and found["pair"] is None):
        _guess_texts(found, rows, paired)
    if found["label"] is None:
        found["label"] = next((name for name in _LABEL if name in rows.columns), None)
    needed = ["text", *(["pair"] if paired else []), "label"]
    for what in needed:
        if found[what] is None:
            others = ", ".join(rows.columns)
            raise JobError(f"which column of {rows.path.name} is the {what}? Give --{what}-column; there are: {others}")
    used = [name for name in found.values() if name is not None]
    if len(set(used)) < len(used):
        raise JobError(f"one column of {rows.path.name} cannot be two things: text, pair and label are {used}")
    return found, [what for what, name in found.items() if name is not None and asked[what] is None]


def _guess_texts(found: dict[str, Any], rows: Rows, paired: bool) -> None:
    """Fills in text and pair. Two columns that are known to belong together are both taken."""
    there = set(rows.columns)
    for text, pair in _TOGETHER:
        wanted = {"text": text, "pair": pair}
        if {text, pair} <= there and all(found[one] in (None, name) for one, name in wanted.items()):
            found.update(wanted)
            return
    if found["text"] is None:
        found["text"] = next((name for name in _ALONE if name in there and name != found["pair"]), None)


# How the names of files with labelled data end, and what reads them.
KINDS = {".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}
