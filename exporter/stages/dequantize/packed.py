"""The packed weights of a quantized checkpoint: which stored tensors make one, its shape, its float rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.blocks import Tensors
from exporter.errors import JobError
from exporter.stages.dequantize import unpack

if TYPE_CHECKING:
    import torch

# The stored tensors of one weight, after the weight's name (4 bits) or its module's; the first is the packed values.
_PARTS = {
    "nf4": ("absmax", "quant_map", "nested_absmax", "nested_quant_map", "quant_state.bitsandbytes__nf4"),
    "fp4": ("absmax", "quant_map", "nested_absmax", "nested_quant_map", "quant_state.bitsandbytes__fp4"),
    "int8": ("weight", "SCB", "weight_format"),
    "gptq": ("qweight", "qzeros", "scales", "g_idx"),
    "awq": ("qweight", "qzeros", "scales"),
}
# The part that only a packed weight has, and the parts that it cannot be without.
_MARK = {"nf4": _PARTS["nf4"][-1], "fp4": _PARTS["fp4"][-1], "int8": "SCB", "gptq": "qweight", "awq": "qweight"}
_NEEDED = {"nf4": ("weight", "absmax"), "fp4": ("weight", "absmax"), "int8": ("weight",)}
SCHEMES = tuple(_PARTS)


@dataclass(frozen=True)
class Packed:
    """One weight: `parts` maps what a stored tensor is to its name; `how` is the checkpoint's quantization_config."""

    name: str
    scheme: str
    parts: dict[str, str]
    how: Mapping[str, Any]

    @property
    def main(self) -> str:
        """The stored tensor of the packed values, to whose shard the float weight goes."""
        return next(iter(self.parts.values()))

    def shape(self, stored: Tensors) -> tuple[int, ...]:
        """(out, in)."""
        if self.scheme in ("nf4", "fp4"):
            state = stored.read(self.parts[_MARK[self.scheme]])
            return tuple(json.loads(bytes(state.tolist()))["shape"])
        shapes = {kind: stored.entries[part].shape for kind, part in self.parts.items()}
        if self.scheme == "int8":
            return shapes["weight"]
        inputs = shapes["qweight"][0]
        if self.scheme == "gptq":
            inputs = shapes["g_idx"][0] if "g_idx" in shapes else 32 * inputs // int(self.how["bits"])
        return shapes["scales"][1], inputs

    def rows(self, stored: Tensors, turned: bool) -> Iterator[torch.Tensor]:
        """The float weight in blocks, in order; `turned`: its transpose [in, out]."""
        import torch

        parts = {kind: stored.read(part) for kind, part in self.parts.items()}
        if self.scheme == "gptq":
            rows = unpack.gptq_rows(parts, self.how, self.name)
        elif self.scheme == "awq":
            rows = unpack.awq_rows(parts, int(self.how.get("group_size", self.how.get("q_group_size", 128))), self.name)
        else:
            rows = unpack.int8_rows(parts) if self.scheme == "int8" else unpack.bnb4_rows(parts)
        if not turned:
            return rows
        return iter([torch.cat([block.reshape(-1) for block in rows]).view(self.shape(stored)).t()])


def find(stored: Tensors, scheme: str, how: Mapping[str, Any]) -> dict[str, Packed]:
    """The packed weights of a checkpoint, under the names that they have when they are float. Raises JobError."""
    found = {}
    for mark in stored.entries:
        owner = mark.removesuffix(f".{_MARK[scheme]}")
        if owner != mark:
            parts = {kind: f"{owner}.{kind}" for kind in _PARTS[scheme]}
            name = f"{owner}.weight"
            if scheme in ("nf4", "fp4"):
                name, parts = owner, {"weight": owner} | parts
            parts = {kind: part for kind, part in parts.items() if part in stored.entries}
            lacking = [kind for kind in _NEEDED.get(scheme, _PARTS["awq"]) if kind not in parts]
            if lacking:
                raise JobError(f"{mark} stands without its {' and '.join(lacking)}; get the file again")
            found[name] = Packed(name, scheme, parts, how)
    return found
