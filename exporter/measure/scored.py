"""The figures of labelled examples, by what their labels are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from exporter.measure.labels import ANSWERS, TAGS, Labels, classified, correlated, numbers_of
from exporter.measure.spans import answered, tagged
from exporter.report.result import Figure
from exporter.runner import Floats
from exporter.types import MULTI_LABEL, SINGLE_LABEL


def score(labels: Labels, vectors: Floats) -> dict[str, Figure]:
    """The reference's figures, of its answers; and none of them drops."""
    figures = compare_labels(labels, vectors, vectors)
    none = {name: Figure(0.0) for name in figures if name.endswith(("_drop", "_rise"))}
    return {name: one for name, one in (figures | none).items() if name != "mcnemar_p"}


def doubt(labels: Labels, figures: Mapping[str, Figure]) -> str | None:
    """Why a reference's figures make one doubt that the labels mean the model's classes; None where they do not."""
    if labels.kind in (SINGLE_LABEL, MULTI_LABEL):
        _, counts = np.unique(labels.values, axis=0, return_counts=True)
        common, right = float(counts.max()) / len(labels.values), figures["accuracy"].value or 0.0
        if len(counts) > 1 and right < common:
            return (
                f"it is right on {right:.1%} of the labelled examples, and {common:.1%} have the most common label: "
                f"are the labels the model's? Its classes are {', '.join(labels.names[:8])}"
            )
    elif labels.kind in (TAGS, ANSWERS):
        if not figures["f1"].value:
            return "it finds none of the labelled examples right: are the labels this model's?"
    elif (figures["label_spearman"].value or 0.0) <= 0:
        return "what it answers does not rise with the labels: are they of this model, and larger where it is?"
    return None


def compare_labels(labels: Labels, expected: Floats, got: Floats) -> dict[str, Figure]:
    """An artifact's figures on labelled examples, and how far each is below the reference's."""
    if labels.kind in (SINGLE_LABEL, MULTI_LABEL):
        return classified(labels, expected, got)
    if labels.kind == TAGS:
        return tagged(labels, expected, got)
    if labels.kind == ANSWERS:
        return answered(labels, expected, got)
    a, b = (numbers_of(labels.kind, one) for one in (expected, got))
    return correlated(labels, a, b)
