"""Rotary embeddings as tables: a position's cosines and sines are looked up, not computed.

An angle is a position times a frequency; float16 rounds that product by up to half a radian at position 1,000, and
engines compute in float16 all that they may. Of the table only the cosines are rounded. It is filled by the model's own
module, so that every kind of scaling is in it.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from exporter.errors import BuildError

if TYPE_CHECKING:
    import torch

_CHANGING = ("dynamic", "longrope")  # kinds whose frequencies depend on the length that is read


def use_tables(model: Any, length: int) -> None:
    """Puts a table of `length` rows in the place of each rotary module. Modules of another form stay as they are.

    Raises BuildError where the frequencies change at fewer tokens: one table would be wrong on one of the sides.
    """
    change = changes_beyond(model.config)
    if change is not None and length > change:
        raise BuildError(f"its rotary embedding changes beyond {change} tokens, and a table has one side of it")
    found = [name for name, _ in model.named_modules() if name.rpartition(".")[2] == "rotary_emb"]
    for name in found:
        parent, rotary = model.get_submodule(name.rpartition(".")[0]), model.get_submodule(name)
        taken = inspect.signature(rotary.forward).parameters
        if "position_ids" not in taken:
            continue
        types = sorted(set(getattr(rotary.config, "layer_types", None) or ())) if "layer_type" in taken else [None]
        tables = {kind: table for kind in types if (table := _table(rotary, length, kind)) is not None}
        if tables:
            parent.rotary_emb = _tables(tables)


def changes_beyond(config: Any) -> int | None:
    """The tokens up to which a model's rotary embeddings have one table; None where they have one for any length."""
    own = config.get_text_config()
    settings = getattr(own, "rope_parameters", None) or {}
    by_type = [one for one in settings.values() if isinstance(one, dict)] or [settings]
    found = [
        int(one.get("original_max_position_embeddings") or own.max_position_embeddings)
        for one in by_type
        if one.get("rope_type") in _CHANGING
    ]
    return min(found, default=None)


def _table(rotary: Any, length: int, layer_type: str | None) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Cosines and sines, [length, D] each; None where the module answers anything else."""
    import torch

    kind = () if layer_type is None else (layer_type,)
    with torch.no_grad():
        answer = rotary(torch.zeros(1, length, 1), torch.arange(length)[None], *kind)
    if not isinstance(answer, tuple) or len(answer) != 2 or any(part.shape[:-1] != (1, length) for part in answer):
        return None
    cos, sin = (part[0].float().contiguous() for part in answer)
    return cos, sin


def _tables(tables: dict[str | None, tuple[torch.Tensor, torch.Tensor]]) -> torch.nn.Module:
    import torch

    class RotaryTables(torch.nn.Module):
        """forward(x, position_ids [B, T], layer type) -> cosines and sines, [B, T, D] each."""

        def __init__(self) -> None:
            super().__init__()
            for kind, (cos, sin) in tables.items():
                self.register_buffer(f"cos_{kind}", cos, persistent=False)
                self.register_buffer(f"sin_{kind}", sin, persistent=False)

        def forward(self, x: Any, position_ids: Any, layer_type: str | None = None) -> tuple[Any, Any]:
            look = torch.nn.functional.embedding
            cos, sin = (getattr(self, f"{part}_{layer_type}") for part in ("cos", "sin"))
            return look(position_ids, cos), look(position_ids, sin)

    return RotaryTables()
