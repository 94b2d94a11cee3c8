"""What kind of question a classifier answers, by transformers' rule: one label, several at once, or a number.

A regressor, a reranker and a reward model are classifiers to transformers: their task is the same, and the softmax of
their one logit is always 1. So the kind decides what is compared, and it is read from config.json alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.checkpoint.load import read_config
from exporter.form import FORMS
from exporter.types import REGRESSION, SINGLE_LABEL

_LABELS = 2  # transformers' default, which it leaves out of config.json


def problem_type(config: Mapping[str, Any]) -> str:
    """What a config.json says, or else what follows from its number of labels."""
    names = config.get("id2label")
    labels = len(names) if names is not None else config.get("num_labels", _LABELS)
    return str(config.get("problem_type") or (REGRESSION if labels == 1 else SINGLE_LABEL))


def problem_of(folder: Path, task: str) -> str:
    """A checkpoint's problem type; "" for a task that has none. Raises JobError."""
    return problem_type(read_config(folder)) if task in FORMS and FORMS[task].classifier else ""
