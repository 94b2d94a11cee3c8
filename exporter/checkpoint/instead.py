"""What a folder without a model's safetensors holds instead, and the command that makes a model of it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from exporter.errors import JobError

PICKLES = ("*model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")  # training_args.bin is none
_ADAPTER = (
    "import torch, safetensors.torch as s; "
    "s.save_file(torch.load('adapter_model.bin', weights_only=True), 'adapter_model.safetensors')"
)
_INDEX = (
    "import glob, json; from safetensors import safe_open as o; json.dump({{'metadata': {{}}, 'weight_map': {{k: f "
    "for f in sorted(glob.glob('{stem}-*-of-*.safetensors')) for k in o(f, 'np').keys()}}}}, "
    "open('{stem}.safetensors.index.json', 'w'))"
)


def refuse_others(folder: Path, stem: str, again: str) -> None:
    """Says what a folder without a model's files holds instead, and how it becomes one. `again`: how files that are
    lacking are got. Raises JobError."""
    _refuse_trainers(folder)
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        code = _ADAPTER if stem == "adapter_model" else _converted(folder)
        first = "" if stem != "adapter_model" else f"cd {shlex.quote(str(folder.absolute()))} && "
        last = "" if stem == "adapter_model" else _moved(folder)
        if pickles == ["pytorch_model_fsdp.bin"]:
            first = f"cp {_quoted(folder, pickles[0])} {_quoted(folder, 'pytorch_model.bin')} && "
        raise JobError(
            f"{folder} holds pickled weights ({pickles[0]}), which can run code when they are read; convert them where "
            f'you trust them: {first}python -c "{code}"{last}'
        )
    _refuse_without_index(folder, stem, again)
    if (folder / "consolidated.safetensors").is_file():
        raise JobError(
            f"{folder} holds consolidated.safetensors, the weights under Mistral's own names; give the folder with "
            "model.safetensors, under those of transformers"
        )
    steps = sorted(folder.glob("checkpoint-*/config.json"), key=lambda path: _number(path.parent.name))
    if steps:
        held = ", ".join(path.parent.name for path in steps[-3:])
        raise JobError(f"{folder} is a training's folder; give one of its checkpoints ({held}): {steps[-1].parent}")


def _refuse_trainers(folder: Path) -> None:
    """FSDP's and DeepSpeed's shards, which are of the training's processes."""
    new = _quoted(folder, "merged")
    here = f"mv {new}/* {shlex.quote(str(folder.absolute()))}"
    for shards in sorted(path.parent for path in folder.glob("*/*.distcp")):
        raise JobError(
            f"{folder} holds FSDP's shards ({shards.name}), not a model; join them: accelerate merge-weights "
            f"{shlex.quote(str(shards.absolute()))} {new} && {here}"
        )
    if found := sorted(folder.glob("*/*zero_pp_rank_*.pt")):
        how = "python zero_to_fp32.py . merged --safe_serialization"
        raise JobError(
            f"{folder} holds DeepSpeed's shards ({found[0].parent.name}), not a model; join them with the script that "
            f"it left there: cd {shlex.quote(str(folder.absolute()))} && {how} && {here}"
        )


def _converted(folder: Path) -> str:
    """Python that loads a folder with its own class, whose head another would leave out, and saves it beside."""
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    names = config.get("architectures") if isinstance(config, dict) else None
    own = [name for name in (config.get("auto_map") or {}) if name.startswith("AutoModel")] if names else []
    kind, trust = (own[0], ", trust_remote_code=True") if own else ((names or ["AutoModel"])[0], "")
    here = str(folder.absolute())
    return (
        f"from transformers import {kind} as M; "
        f"M.from_pretrained('{here}', dtype='auto'{trust}).save_pretrained('{here}/converted')"
    )


def _moved(folder: Path) -> str:
    """Shell that puts the weights that were saved beside where they belong: the folder's other files stay its own."""
    new, here = _quoted(folder, "converted"), shlex.quote(str(folder.absolute()))
    return f" && mv {new}/*.safetensors* {here} && rm -r {new}"


def _quoted(folder: Path, name: str) -> str:
    return shlex.quote(str(folder.absolute() / name))


def _number(name: str) -> int:
    digits = name.rpartition("-")[2]
    return int(digits) if digits.isdigit() else -1


def _refuse_without_index(folder: Path, stem: str, again: str) -> None:
    shards = sorted(path.name for path in folder.glob(f"{stem}-*-of-*.safetensors"))
    numbered = re.fullmatch(r"(.*-)(\d+)(-of-(\d+)\.safetensors)", shards[-1]) if shards else None
    if numbered is None:
        return
    before, digits, after, count = numbered.groups()
    names = (f"{before}{number:0{len(digits)}d}{after}" for number in range(1, int(count) + 1))
    if absent := [name for name in names if name not in shards]:
        raise JobError(f"{folder} lacks {', '.join(absent[:3])} and the index; {again}")
    raise JobError(
        f"{folder} holds {shards[0]} and the like, but not {stem}.safetensors.index.json, which says that they are the "
        f'model; write it: cd {shlex.quote(str(folder))} && python -c "{_INDEX.format(stem=stem)}"'
    )
