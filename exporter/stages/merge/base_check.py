"""Whether a base is whole, and the one that an adapter was trained on, as far as the adapter's file can tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from exporter.checkpoint.floats import TORCH_DTYPES, as_tensor, torch_dtype
from exporter.checkpoint.weights import Stored
from exporter.errors import JobError
from exporter.stages.merge.adapter import Adapter, base_name
from exporter.stages.merge.misfit import few

_CHUNK = 1 << 24
_ROUNDING, _TINY = 2.0**-7, 1e-7  # training may have loaded the base in bfloat16, or in float16 with its subnormals


def stored_name(name: str, stored: dict[str, Stored], prefix: str) -> str | None:
    """The name in the checkpoint's files of a model's parameter: files may lack or have the base model's prefix."""
    for candidate in (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}"):
        if candidate in stored:
            return candidate
    return None


def refuse_absent(base: Path, missing: Iterable[str], adapters: list[Adapter]) -> None:
    """Refuses a base whose files lack parameters that no adapter holds: they would be random. Raises JobError."""
    held = {name for adapter in adapters for name in adapter.names()}
    # A headless encoder's pooler is not in its answers.
    absent = sorted(name for name in missing if name not in held and not name.startswith("pooler."))
    if absent:
        raise JobError(
            f"{base} has no tensor for {few(absent)}, and the adapter holds none: it would be random; give the "
            "checkpoint that has it, or train with modules_to_save=['" + absent[0].split(".")[-2] + "']"
        )


def check_copies(adapter: Adapter, base: Path, stored: dict[str, Stored], prefix: str) -> list[str]:
    """Compares the base's embeddings with the copies of them that PEFT puts into an adapter on embeddings.

    Returns a line of history for each that is the base's. Raises JobError where it is not.
    """
    lines = []
    for key, copy in adapter.tensors.items():
        name = base_name(key)
        kept = stored_name(name, stored, prefix)
        if ".base_layer.weight" not in key or kept is None or copy.shape[1:] != stored[kept].shape[1:]:
            continue
        if not {copy.dtype, stored[kept].dtype} <= set(TORCH_DTYPES):
            continue
        for ours, theirs in zip(_rows(stored[kept], copy), _rows(copy, stored[kept]), strict=True):
            own, found = (as_tensor(part.read(), part.dtype).to(torch_dtype("float32")) for part in (ours, theirs))
            if not bool(((own - found).abs() <= own.abs() * _ROUNDING + _TINY).all()):
                raise JobError(
                    f"{base} is not the base of the adapter {adapter.path}: that carries a copy of its base's {name}, "
                    f"which differs{adapter.base}"
                )
        lines.append(f"{name} is the one that {adapter.path.name} was trained on: it carries a copy")
    return lines


def _rows(one: Stored, other: Stored) -> Iterator[Stored]:
    """A tensor in pieces of the same rows as another's: the first ones of both, where training added some."""
    rows = min(one.shape[0], other.shape[0])
    width = max((each.end - each.begin) // max(1, each.shape[0]) for each in (one, other))
    step, own = max(1, _CHUNK // max(1, width)), (one.end - one.begin) // max(1, one.shape[0])
    for row in range(0, rows, step):
        yield replace(one, begin=one.begin + row * own, end=one.begin + min(rows, row + step) * own)
