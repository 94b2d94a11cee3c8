"""Tensors under names that a wrapper gave them: what they are called else, who did it, and the command that mends it.

A training saves the state of what it ran, and that was often not the model but what was around it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection
from pathlib import Path

# What stands in a name, and whose it is.
_WRAPPERS = (
    ("_orig_mod.", "torch.compile"),
    ("module.", "DataParallel or DeepSpeed"),
    ("_fsdp_wrapped_module.", "FSDP"),
    ("pretrained_model.", "TRL's value head"),
    ("base_model.model.", "PEFT"),
    ("language_model.", "a model with images of which this is the text part"),
)
_LORA_NAME = re.compile(r"\.lora_[AB]\.((?!weight$|bias$)[^.]+\.)(?:weight|bias)$")  # what PEFT calls an adapter


def wrapper_of(stored: Collection[str], wanted: Collection[str]) -> tuple[str, str] | None:
    """(the wrapper's part of the names, whose it is) where all `wanted` names are stored with it, and none without."""
    for mark, owner in (*_WRAPPERS, _all_marks(stored)):
        if mark and wanted and set(wanted) <= {without(name, mark) for name in stored if without(name, mark) != name}:
            return mark, owner
    return None


def _all_marks(stored: Collection[str]) -> tuple[str, str]:
    """All that stand at the beginning of a name at once, one in another."""
    for name in stored:
        beginning = ""
        while found := next((mark for mark, _ in _WRAPPERS if name.startswith(beginning + mark)), ""):
            beginning += found
        if beginning:
            return beginning, "several wrappers"
    return "", ""


def without(name: str, mark: str) -> str:
    """A tensor's name without the first occurrence of a wrapper's part of it."""
    return name[len(mark) :] if name.startswith(mark) else name.replace(f".{mark}", ".", 1)


def adapter_mark(names: Collection[str]) -> tuple[str, str] | None:
    """The part of an adapter's names that none has as PEFT saves it, and whose it is; None where there is none."""
    for mark, owner in _WRAPPERS[:3]:
        if any(name.startswith(mark) or (mark[0] == "_" and f".{mark}" in name) for name in names):
            return mark, owner
    for name in names:
        if found := _LORA_NAME.search(name):
            return found[1], "PEFT within a model"
    return None


def renaming(folder: Path, mark: str, instead: str = "") -> str:
    """The command that writes a copy of a folder whose tensors' names have `instead` where a wrapper's part stood."""
    here, there = (shlex.quote(str(path)) for path in (folder.absolute(), f"{folder.absolute()}-renamed"))
    code = (
        "import glob, pathlib, re; from safetensors.torch import load_file as l, save_file as s; "
        f"r = lambda k: re.sub(r'(^|\\.){re.escape(mark)}', r'\\1{instead}', k, count=1); "
        "[s({r(k): v for k, v in l(f).items()}, f, {'format': 'pt'}) for f in glob.glob('*.safetensors')]; "
        "[f.write_text(t) for f in pathlib.Path().glob('*.index.json') "
        f"for t in [re.sub(r'([\\x22.]){re.escape(mark)}', r'\\1{instead}', f.read_text())]]"
    )
    return f'cp -rL {here} {there} && cd {there} && python -c "{code}"'
