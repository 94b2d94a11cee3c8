"""What labelled data says of a row, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_OWN = {
    "accuracy": "accuracy", "f1": "macro F1", "precision": "precision", "recall": "recall", "matthews": "Matthews",
    "label_pearson": "Pearson with the labels", "label_spearman": "Spearman with the labels",
    "label_mae": "mean absolute error",
}  # fmt: skip
_LOSSES = {
    "accuracy_drop": "accuracy", "f1_drop": "macro F1", "matthews_drop": "Matthews", "pearson_drop": "Pearson",
    "spearman_drop": "Spearman", "mae_rise": "mean absolute error",
}  # fmt: skip


def labelled_lines(row: Mapping[str, Any]) -> Iterator[str]:
    """Nothing for a row without labels."""
    quality = row["quality"]
    own = [f"{name} {_figure(quality[key])}" for key, name in _OWN.items() if _has(quality, key)]
    if own:
        yield f"on labelled data: {', '.join(own)}"
    if not _has(quality, "mcnemar_p") and not _has(quality, "spearman_drop"):
        return  # the reference's own row of a classifier
    losses = [
        f"{name} {'higher' if key.endswith('_rise') else 'lower'} by {_figure(quality[key])}"
        for key, name in _LOSSES.items()
        if _has(quality, key)
    ]
    if losses and any(quality[key]["se"] is not None for key in _LOSSES if _has(quality, key)):
        yield f"against the reference: {', '.join(losses)}"
    if _has(quality, "mcnemar_p"):
        mcnemar = quality["mcnemar_p"]
        yield f"{mcnemar['detail']}; McNemar's exact test: p = {mcnemar['value']:.3g}"
    if _has(quality, "recall_drop") and quality["recall_drop"]["detail"]:
        yield f"classes whose recall got worse: {quality['recall_drop']['detail']}"


def data_line(data: Mapping[str, Any]) -> str:
    """The file that was measured on: how many examples, which columns, what was guessed."""
    columns = data["columns"]
    told = [
        f"{what} from {name!r}{' (guessed)' if what in data['guessed'] else ''}"
        for what, name in columns.items()
        if name is not None
    ]
    cut = f"; {data['cut']} texts were cut at the window" if data.get("cut") else ""
    labels = f"; labels are {data['labels']}" if data["labels"] is not None else ""
    return f"{data['examples']:,} examples: {', '.join(told)}{labels}{cut}"


def _has(quality: Mapping[str, Any], key: str) -> bool:
    return (quality.get(key) or {}).get("value") is not None


def _figure(figure: Mapping[str, Any]) -> str:
    error = "" if figure["se"] is None else f" ± {figure['se']:.4f}"
    return f"{figure['value']:.4f}{error}"
