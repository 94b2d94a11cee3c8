"""What targets' folders have in common: configuration and tokenizer, the model's name, a file in two places."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from exporter.types import PROCESSOR_FILES, TOKENIZER_FILES

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


def model_name(source: str) -> str:
    """What a file is called after: the model's folder, recipe or hub id, without what a path cannot hold."""
    return _NOT_IN_NAMES.sub("-", Path(source).resolve().name if Path(source).is_dir() else source.rpartition("/")[2])


def copy_configuration(checkpoint: Path, folder: Path) -> None:
    """The checkpoint's configuration, tokenizer, chat template and image processor, as far as it has them."""
    for name in ("config.json", "generation_config.json", *TOKENIZER_FILES, *PROCESSOR_FILES):
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, folder / name)


def hard_link(file: Path, name: Path) -> None:
    """A second name of the same bytes, which cost no time and no room; a copy where the file system has only one."""
    try:
        os.link(file, name)
    except OSError:
        shutil.copyfile(file, name)
