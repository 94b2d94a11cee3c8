"""The text that is measured on: the user's, the recipe's, or the standard library's."""

from __future__ import annotations

from pathlib import Path

from exporter.errors import JobError
from exporter.recipes import Recipe

TOPICS = "pydoc_data.topics of the Python standard library"


def evaluation_text(path: Path | None, recipe: Recipe | None) -> tuple[str, str]:
    """(what the report calls it, the text). Raises JobError for a file that is not there, not UTF-8, or empty."""
    if path is None and recipe is not None and recipe.eval_text is not None:
        path = recipe.folder() / recipe.eval_text
    if path is None:
        return TOPICS, standard_library_topics()
    return path.name, _read(path, "--eval-text")


def calibration_text(path: Path | None, recipe: Recipe | None, evaluated: str, tokens: int) -> tuple[str, str, int]:
    """(its name, the text, how many of its first tokens to leave out) to calibrate on: never what is measured on.

    Where both are the standard library's topics, calibration takes what comes after the `tokens` that are measured.
    Raises JobError for a file that cannot be used, or is the evaluation's text.
    """
    if path is None and recipe is not None and recipe.calib_text is not None:
        path = recipe.folder() / recipe.calib_text
    if path is None:
        text = standard_library_topics()
        return TOPICS, text, tokens if text == evaluated else 0
    text = _read(path, "--calib-text")
    if text.strip() == evaluated.strip():
        raise JobError(
            f"{path} is the text that is measured on: calibrated on it, the figures would flatter; "
            "give another --calib-text"
        )
    return path.name, text, 0


def _read(path: Path, flag: str) -> str:
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise JobError(
            f"{path} is not UTF-8 (byte {error.start}); convert it: iconv -f latin1 -t utf-8 {path} > text.txt"
        ) from error
    except OSError as error:
        raise JobError(f"cannot read the text {path}: {error.strerror}") from error
    if not text.strip():
        raise JobError(f"the text {path} is empty; give another with {flag}")
    return text


def standard_library_topics() -> str:
    """English prose that every Python carries; it differs a little between Python versions."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))
