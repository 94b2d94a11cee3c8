"""What an adapter's folder says that a merge would pass over: keys that PEFT does not know, a change that is none."""

from __future__ import annotations

from typing import Any

import numpy as np

from exporter.checkpoint.weights import Stored
from exporter.errors import JobError
from exporter.stages.merge.adapter import Adapter

_LEGACY = ("merge_weights",)  # of PEFT's first versions: how it was run, not what it computes
_ONES = {"F64": 0x3FF0000000000000, "F32": 0x3F800000, "BF16": 0x3F80, "F16": 0x3C00}
_WIDTHS = {"F64": np.uint64, "F32": np.uint32, "BF16": np.uint16, "F16": np.uint16}
# A module's change is a product of these: it is none where one of a group is zero.
_FACTORS = ("lora_A", "lora_B", "lora_E", "lora_embedding_A", "lora_embedding_B", "hada_w", "lokr_w")


def notes_of(adapter: Adapter) -> list[str]:
    """What the report must tell of an adapter. Raises JobError for what would be merged wrong."""
    if adapter.config.get("alora_invocation_tokens"):
        raise JobError(
            f"the adapter {adapter.path} is an activated LoRA (alora_invocation_tokens): it acts only after these "
            "tokens, and merged it would act always; keep base and adapter apart"
        )
    return [*_ignored(adapter), *_dead(adapter)]


def _ignored(adapter: Adapter) -> list[str]:
    """The keys of adapter_config.json that the installed PEFT does not know. Raises JobError for one that is on."""
    import inspect

    import peft

    kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(adapter.config["peft_type"])]
    unknown = sorted(adapter.config.keys() - inspect.signature(kind).parameters.keys())
    on = [key for key in unknown if _is_on(adapter.config[key]) and key not in _LEGACY]
    if on:
        made = adapter.config.get("peft_version")
        raise JobError(
            f"{adapter.path}/adapter_config.json has {on[0]}, which PEFT {peft.__version__} does not know and would "
            f"leave out of the merge{f'; it was saved by PEFT {made}' if made else ''}: pip install -U peft, or take "
            "the key out where it changes nothing"
        )
    few = ", ".join(f"{key}: {adapter.config[key]}" for key in unknown[:4])
    return [f"PEFT ignores keys of {adapter.path.name}'s adapter_config.json: {few}."] if unknown else []


def _is_on(value: Any) -> bool:
    """Numbers and words are written where an option is off as well; what is true, listed or nested is on."""
    if isinstance(value, dict):
        return any(one not in (None, False, [], {}, "") for one in value.values())
    return value is True or (isinstance(value, list) and bool(value))


def _dead(adapter: Adapter) -> list[str]:
    """Whether every change of an adapter is none, as PEFT begins: training did not reach it, or was not saved."""
    modules: dict[str, bool] = {}  # whether its change is none
    for name, tensor in adapter.tensors.items():
        owner = next((name.partition(f".{factor}")[0] for factor in _FACTORS if f".{factor}" in name), None)
        if ".base_layer." in name or name.endswith(".ranknum"):
            continue  # the base's own, and AdaLoRA's count
        if ".ia3_l" in name:
            modules[name] = _is_all(tensor, _ONES)
        elif owner is None or name.endswith(".bias"):
            return []  # a whole tensor in the base's place, DoRA's magnitude, a bias of its own
        else:
            modules[owner] = modules.get(owner, False) or _is_all(tensor, {})
    if not modules or not all(modules.values()):
        return []
    told = f"The adapter {adapter.path.name} changes nothing: the change of all its {len(modules)} modules is zero, as "
    return [told + "training begins. What is exported is the base; give the adapter that was trained."]


def _is_all(tensor: Stored, bits: dict[str, int]) -> bool:
    """Whether all values are the one with these bits by dtype, or zero, whatever its sign."""
    if tensor.dtype not in _WIDTHS or not tensor.numbers:
        return False
    values = tensor.read().view(_WIDTHS[tensor.dtype])
    wanted = bits.get(tensor.dtype, 0)
    return not bool(np.any(values != wanted) if wanted else np.any(values << values.dtype.type(1)))
