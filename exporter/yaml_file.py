"""YAML files that users write: read with one line for whatever is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from exporter.errors import JobError


def off_is_a_word(value: Any) -> Any:
    """What YAML reads of a bare off, where a field takes the word."""
    return "off" if value is False else value


def read_yaml(file: Path, what: str) -> Any:
    """The contents of a file; `what` it is called in the message. Raises JobError."""
    try:
        return yaml.safe_load(file.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise JobError(f"cannot read the {what} {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise JobError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
