"""Which parameters of a model its adapters change, and how: found on the meta device, with no weight in memory.

PEFT attaches each adapter to the model without weights, so that its own rules (patterns, ranks, "all-linear") name the
modules; what the adapter's file holds is compared with what PEFT expects.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.checkpoint.weights import Stored
from exporter.errors import JobError
from exporter.stages.merge.adapter import PREFIX, Adapter, base_name, repeated
from exporter.stages.merge.attach import MISFIT, NAME, Ties, quiet, untie_configuration
from exporter.stages.merge.misfit import misfit, refuse, refuse_lost_bias

_WHY_MEMORY = "merge it with --merge memory"


@dataclass
class Change:
    """What one adapter does to the parameters of one module."""

    adapter: Adapter
    replaced: dict[str, Stored] = field(default_factory=dict)  # parameter -> the adapter's whole tensor
    shared: dict[str, Stored] = field(default_factory=dict)  # likewise, of the base's: what is tied to it gets it too
    factors: dict[str, Stored] = field(default_factory=dict)  # key in the adapter's file -> tensor, for PEFT's layer
    feedforward: bool = False  # IA3's two kinds
    tokens: tuple[int, ...] = ()  # the rows that `rows` replaces
    rows: Stored | None = None


Layout = dict[str, list[Change]]  # module's path -> its changes, in the adapters' order


def layout(model: Any, adapters: list[Adapter], ties: Ties) -> tuple[Layout, list[tuple[str, ...]]]:
    """The changes of all adapters to a model on the meta device, and the groups of tied parameters that they untie.

    A change is under every module that shares what it changes. Raises JobError for what does not fit.
    """
    found: Layout = {}
    untied: list[tuple[str, ...]] = []
    for adapter in adapters:
        changes = _changes(model, adapter)
        for group in ties.groups:
            if group not in untied and _spread(changes, group, adapter):
                untied.append(group)
                untie_configuration(model, group)  # PEFT looks there when the next adapter is attached
        for path, change in changes.items():
            change.replaced = change.shared | change.replaced
            found.setdefault(path, []).append(change)
    return found, untied


def _spread(changes: dict[str, Change], group: tuple[str, ...], adapter: Adapter) -> bool:
    """Puts one adapter's changes under every module of a group of tied parameters; whether it unties them."""
    places = [tuple(name.rpartition("."))[::2] for name in group]
    for stored in [changes[owner].shared[name] for owner, name in places if name in _of(changes, owner).shared]:
        for owner, name in places:
            changes.setdefault(owner, Change(adapter)).shared.setdefault(name, stored)
    marks = {_mark(changes.get(owner), owner, name) for owner, name in places}
    if len(marks) > 1:
        if any(_of(changes, owner).rows for owner, _ in places):
            raise JobError(
                f"the adapter {adapter.path} trains tokens of {' and '.join(group)}, and changes one of them in "
                f"another way too; {_WHY_MEMORY}"
            )
        return True
    changed = next((changes[owner] for owner, _ in places if owner in changes), None)
    for owner, _ in places:
        if changed is not None:
            changes.setdefault(owner, changed)
    return False


def _of(changes: dict[str, Change], owner: str) -> Change:
    return changes.get(owner) or Change(Adapter(Path(), {}, {}))


def _mark(change: Change | None, owner: str, name: str) -> str:
    """What stays the same when two tied parameters are changed alike."""
    if change is None or (not change.factors and not (change.replaced | change.shared)):
        return ""
    if change.factors:
        return owner  # a delta of its own
    held = (change.shared | change.replaced).get(name)
    return "" if held is None else hashlib.sha256(held.read().data).hexdigest()


def _changes(model: Any, adapter: Adapter) -> dict[str, Change]:
    from peft import get_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    _refuse_unsupported(adapter, adapter.config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
    attached = _attach_meta(model, adapter)
    _refuse_unsupported(adapter, attached.peft_config[NAME].to_dict())  # PEFT fuses adapters on single experts
    ranks = _ranks_left(attached)
    with quiet():
        state = get_peft_model_state_dict(attached, adapter_name=NAME, save_embedding_layers=False)
    expected = {base_name(key): tuple(value.shape) for key, value in state.items() if ".modules_to_save." not in key}
    modules = dict(attached.get_base_model().named_modules())
    tuners = {
        name: bool(getattr(module, "is_feedforward", False))
        for name, module in modules.items()
        if isinstance(module, BaseTunerLayer) and not name.endswith(".token_adapter")
    }
    own = tuple(f"{name}." for name, module in modules.items() if isinstance(module, AuxiliaryTrainingWrapper))
    changes: dict[str, Change] = {}
    unexpected = []
    for key, stored in adapter.tensors.items():
        plain = base_name(key)
        owner, _, name = plain.rpartition(".")
        if plain in shapes:
            _refuse_shape(adapter, model, key, stored.shape, shapes[plain])
            change = changes.setdefault(owner, Change(adapter))
            kept = change.replaced if key == PREFIX + plain and plain.startswith(own) else change.shared
            kept[name] = stored
        elif key.endswith(".trainable_tokens_delta"):
            owner = owner.removesuffix(".token_adapter")
            if not isinstance(getattr(modules.get(owner), "token_adapter", modules.get(owner)), BaseTunerLayer):
                unexpected.append(key)
                continue
            change = changes.setdefault(owner, Change(adapter))
            change.rows, change.tokens = stored, _token_indices(modules[owner])
        elif plain not in expected:
            if not repeated(key, adapter.tensors):
                unexpected.append(key)
        else:
            owner = next(path for path in tuners if plain.startswith(f"{path}."))
            wanted = expected[plain]
            if owner in ranks:
                wanted = (wanted[0], ranks[owner]) if ".lora_B" in plain else (ranks[owner], wanted[1])
            _refuse_shape(adapter, model, key, stored.shape, wanted)
            changes.setdefault(owner, Change(adapter)).factors[key] = stored
    refuse(adapter, attached, set(expected) - {base_name(key) for key in adapter.tensors}, unexpected)
    for path, change in changes.items():
        change.feedforward = tuners.get(path, False)
    with quiet():
        attached.unload()
    return changes


def _refuse_unsupported(adapter: Adapter, config: dict[str, Any]) -> None:
    if config.get("target_parameters"):
        raise JobError(
            f"the adapter {adapter.path} changes parameters that transformers fuses when it loads them "
            f"(target_parameters), which cannot be done file by file; {_WHY_MEMORY}"
        )
    if config.get("layer_replication"):
        raise JobError(f"the adapter {adapter.path} repeats layers (layer_replication); {_WHY_MEMORY}")
    if config.get("ensure_weight_tying"):
        raise JobError(f"the adapter {adapter.path} was trained with ensure_weight_tying; {_WHY_MEMORY}")


def _attach_meta(model: Any, adapter: Adapter) -> Any:
    import torch
    from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftConfig, PeftModel

    try:
        with quiet(), torch.device("meta"):
            config = PeftConfig.from_pretrained(str(adapter.path))
            config.inference_mode = True
            if hasattr(config, "init_lora_weights"):
                config.init_lora_weights = False  # nothing may be computed from weights that are not there
            kind = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)
            attached = kind(model, config, adapter_name=NAME)
    except MISFIT as error:
        raise JobError(misfit(adapter, model, error)) from error
    refuse_lost_bias(adapter, attached)
    return attached


def _ranks_left(attached: Any) -> dict[str, int]:
    """The ranks that AdaLoRA's pruning left, by module. The configuration loses them: meta tensors cannot be cut."""
    config = attached.peft_config[NAME]
    if config.peft_type != "ADALORA" or not config.rank_pattern:
        return {}
    ranks = {name.partition(".lora_E")[0]: sum(kept) for name, kept in config.rank_pattern.items()}
    config.rank_pattern = None
    return ranks


def _token_indices(module: Any) -> tuple[int, ...]:
    return tuple(getattr(module, "token_adapter", module).token_indices[NAME])


def _refuse_shape(adapter: Adapter, model: Any, key: str, held: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if held != wanted:
        error = ValueError(f"{key} is {list(held)}, and this model needs {list(wanted)}")
        raise JobError(misfit(adapter, model, error))
