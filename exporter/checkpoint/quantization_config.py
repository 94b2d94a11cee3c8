"""What a config.json says of weights that are quantized already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def scheme_of(config: Mapping[str, Any]) -> str | None:
    """What a config.json says: "nf4", "fp4", "int8", "gptq", "awq", another method's own name, None for float."""
    how = quantization_of(config)
    if how is None:
        return None
    if how.get("load_in_8bit") or how.get("_load_in_8bit"):
        return "int8"
    if how.get("load_in_4bit") or how.get("_load_in_4bit"):
        return str(how.get("bnb_4bit_quant_type", "fp4"))
    return str(how.get("quant_method") or how.get("method") or "MLX")  # MLX writes bits and group_size only


def quantization_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The quantization_config of a model or of a part of it (text_config), or MLX's "quantization"."""
    for holder in (config, *(value for value in config.values() if isinstance(value, Mapping))):
        how = holder.get("quantization_config") or holder.get("quantization")
        if how:
            return dict(how) if isinstance(how, Mapping) else {"quant_method": str(how)}
    return None
