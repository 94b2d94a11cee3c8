"""Sources with their targets (--eval-data): what a model that makes one of the other is measured on."""

from __future__ import annotations

from exporter.errors import JobError, unknown
from exporter.job import MIN_TEXTS, Job
from exporter.measure.labels import check_packages
from exporter.pipeline.labelled import LabelledData, check_gates, is_given, texts_of_column
from exporter.pipeline.rows import Rows, read_rows

TARGETS = "targets"  # what the second texts are
# What data sets call a source and its target; the first two that are there are taken.
_TOGETHER = (
    ("source", "target"), ("src", "tgt"), ("input", "target"), ("input", "output"), ("inputs", "targets"),
    ("text", "summary"), ("document", "summary"), ("dialogue", "summary"), ("article", "highlights"),
    ("question", "answer"), ("text", "target"), ("sentence1", "sentence2"),
)  # fmt: skip


def paired_data(job: Job, task: str) -> LabelledData | None:
    """The job's pairs; None where it names none. Raises JobError, or MissingPackage."""
    check_gates(job, task, {})
    if not is_given(job):
        return None
    assert job.eval_data is not None
    if job.label_column is not None:
        raise JobError("--label-column: pairs have a source (--text-column) and a target (--pair-column), and no label")
    path = job.eval_data.expanduser()
    check_packages(path)
    rows = read_rows(path)
    columns, guessed = _columns(job, rows)
    sources, targets = (texts_of_column(rows, columns[what]) for what in ("text", "pair"))
    if len(sources) < MIN_TEXTS:
        raise JobError(f"{path} has {len(sources)} pairs, and at least {MIN_TEXTS} are needed to measure anything")
    about = {"file": path.name, "examples": len(sources), "kind": TARGETS, "columns": columns, "guessed": guessed}
    return LabelledData(TARGETS, sources, targets, (), (), about | {"labels": None})


def _columns(job: Job, rows: Rows) -> tuple[dict[str, str], list[str]]:
    """The columns of sources (text) and targets (pair), and which of them were guessed. Raises JobError."""
    asked = {"text": job.text_column, "pair": job.pair_column}
    for what, name in asked.items():
        if name is not None and name not in rows.columns:
            raise JobError(f"--{what}-column: {unknown(f'column of {rows.path.name}', name, rows.columns)}")
    for text, pair in (*_TOGETHER, *_others(asked, rows)):
        found = {"text": text, "pair": pair}
        if {text, pair} <= {*rows.columns} and all(asked[what] in (None, name) for what, name in found.items()):
            if text == pair:
                raise JobError(f"one column of {rows.path.name} cannot be source and target: {text}")
            return found, [what for what, name in asked.items() if name is None]
    others = ", ".join(rows.columns)
    raise JobError(
        f"which columns of {rows.path.name} are the source and the target? Give --text-column and --pair-column; "
        f"there are: {others}"
    )


def _others(asked: dict[str, str | None], rows: Rows) -> list[tuple[str, str]]:
    """Of a file with two columns the one that was not named."""
    text, pair = asked["text"], asked["pair"]
    left = [name for name in rows.columns if name not in (text, pair)]
    if text is not None and pair is not None:
        return [(text, pair)]
    if len(left) == 1 and text is not None:
        return [(text, left[0])]
    return [(left[0], pair)] if len(left) == 1 and pair is not None else []
