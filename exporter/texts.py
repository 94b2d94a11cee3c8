"""The text that is measured on: the user's, the recipe's, or the standard library's."""

from __future__ import annotations

from pathlib import Path

from exporter.errors import JobError
from exporter.recipes import Recipe


def evaluation_text(path: Path | None, recipe: Recipe | None) -> tuple[str, str]:
    """(what the report calls it, the text). Raises JobError for a file that is not there, not UTF-8, or empty."""
    if path is None and recipe is not None and recipe.eval_text is not None:
        path = recipe.folder() / recipe.eval_text
    if path is None:
        return "pydoc_data.topics of the Python standard library", standard_library_topics()
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise JobError(
            f"{path} is not UTF-8 (byte {error.start}); convert it: iconv -f latin1 -t utf-8 {path} > text.txt"
        ) from error
    except OSError as error:
        raise JobError(f"cannot read the text {path}: {error.strerror}") from error
    if not text.strip():
        raise JobError(f"the text {path} is empty; give another with --eval-text")
    return path.name, text


def standard_library_topics() -> str:
    """English prose that every Python carries; it differs a little between Python versions."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))
