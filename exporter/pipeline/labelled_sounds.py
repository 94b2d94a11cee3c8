"""Sounds with what is said in them (--eval-data): a file with a column of sounds and one of their transcripts."""

from __future__ import annotations

from pathlib import Path

from exporter.checkpoint.sounds import FEWEST, listed_files
from exporter.errors import JobError, unknown
from exporter.job import Job
from exporter.measure.labels import TRANSCRIPTS, check_packages
from exporter.pipeline.labelled import LabelledData, is_given, texts_of_column
from exporter.pipeline.rows import Rows, read_rows

# What data sets call a sound's file and what is said in it; the first that is there is taken.
_USUAL = {
    "text": ("audio", "file", "path", "audio_file", "file_name", "audio_path", "wav"),
    "label": ("text", "transcript", "transcription", "sentence", "normalized_text"),
}
_KEYS = {"text": "text_column", "label": "label_column"}


def labelled_sounds(job: Job) -> LabelledData | None:
    """The job's sounds with their transcripts: `texts` are the lines of their list, `values` what is said.

    None where the job names none. A sound's path is relative to the file's folder. Raises JobError or MissingPackage.
    """
    if job.max_wer_rise is not None and job.eval_data is None:
        raise JobError("--max-wer-rise is of transcripts that are right: give sounds with them, --eval-data FILE")
    if not is_given(job):
        return None
    assert job.eval_data is not None
    if job.eval_audio is not None:
        raise JobError("--eval-data and --eval-audio are two sets of sounds to measure on: give one of them")
    if job.pair_column is not None:
        raise JobError("--pair-column: sounds have a file (--text-column) and a transcript (--label-column)")
    path = job.eval_data.expanduser()
    check_packages(path, TRANSCRIPTS)
    rows = read_rows(path)
    columns = {what: _column(job, rows, what) for what in _USUAL}
    files, said = (texts_of_column(rows, columns[what]) for what in ("text", "label"))
    if len(files) < FEWEST:
        raise JobError(f"{path} has {len(files)} sounds, and at least {FEWEST} are needed to measure anything")
    found = [path.parent / Path(name) for name in files]
    for row, file in zip(rows.rows, found, strict=True):
        if not file.is_file():
            raise JobError(f"{rows.place(row)}: no such sound: {file}; {columns['text']} is read from {path.parent} on")
    about = {
        "file": path.name,
        "examples": len(files),
        "kind": TRANSCRIPTS,
        "columns": {**columns, "pair": None},
        "guessed": [what for what, key in _KEYS.items() if getattr(job, key) is None],
        "labels": "transcripts",
    }
    return LabelledData(TRANSCRIPTS, tuple(listed_files(found).splitlines()), None, said, (), about)


def _column(job: Job, rows: Rows, what: str) -> str:
    asked: str | None = getattr(job, _KEYS[what])
    if asked is not None and asked not in rows.columns:
        raise JobError(f"--{what}-column: {unknown(f'column of {rows.path.name}', asked, rows.columns)}")
    found = asked or next((name for name in _USUAL[what] if name in rows.columns), None)
    if found is None:
        told, others = ("sound" if what == "text" else "transcript"), ", ".join(rows.columns)
        raise JobError(f"which column of {rows.path.name} is the {told}? Give --{what}-column; there are: {others}")
    return found
