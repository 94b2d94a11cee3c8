"""Merge the adapters of one module, with PEFT's own layer around it and nothing else of the model in memory.

The module gets its path in a model that holds it alone, so that PEFT's patterns for ranks, alphas and targets mean the
same as in the whole model, and what comes out is bit for bit what PEFT makes of the whole model.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from exporter.checkpoint.floats import is_finite, tensor
from exporter.errors import BuildError
from exporter.stages.merge.adapter import Adapter
from exporter.stages.merge.attach import NAME, quiet
from exporter.stages.merge.layout import Change
from exporter.stages.merge.merge import COMBINED, How, combine
from exporter.stages.merge.proof import Agreement, compare

_ROWS, _SEED = 4, 0  # random inputs of a module's proof
_ELSEWHERE = "elsewhere"


def merge_module(path: str, module: Any, values: dict[str, Any], changes: list[Change], how: How) -> list[Agreement]:
    """Makes all changes to the float32 parameters of a module; how well PEFT's forward agrees with the merged one.

    `module` is on the meta device; `values` are its parameters by name, which are replaced and changed in place.
    """
    import torch

    agreements: list[Agreement] = []
    for group in [changes] if how.combine else [[change] for change in changes]:
        for change in group:
            values |= {name: tensor(stored) for name, stored in change.replaced.items()}
        if any(change.factors for change in group):
            agreements.append(_merge_factors(path, module, values, group, how))
        for change in group:
            if change.rows is not None:
                rows = torch.tensor(change.tokens)
                values["weight"] = values["weight"].index_copy(0, rows, tensor(change.rows))
    for name, value in values.items():
        if not is_finite(value):
            raise BuildError(f"merging gives NaN or Inf in {path}.{name}: the adapter is broken; give an earlier one")
    return agreements


def _merge_factors(path: str, module: Any, values: dict[str, Any], group: list[Change], how: How) -> Agreement:
    import torch
    from peft import PeftModel, set_peft_model_state_dict

    alone = copy.deepcopy(module)
    for name, value in values.items():
        setattr(alone, name, torch.nn.Parameter(value, requires_grad=False))
    holder = _at(path, alone)
    # Of a combination, an adapter that leaves this module alone must be there too: PEFT counts ranks and adapters.
    holder.add_module(_ELSEWHERE, torch.nn.Linear(1, 1))
    attached = None
    with quiet(), torch.no_grad():
        for number, change in enumerate(group):
            name = f"{NAME}{number}" if how.combine else NAME
            config = _config(change.adapter, path if change.factors else _ELSEWHERE, change.feedforward)
            if attached is None:
                attached = PeftModel(holder, config, adapter_name=name)
            else:
                attached.add_adapter(name, config)
            if not change.factors:
                continue
            factors = {key: tensor(stored) for key, stored in change.factors.items()}
            fit: Any = set_peft_model_state_dict(attached, factors, name)
            assert not fit.unexpected_keys, fit.unexpected_keys  # the layout was compared before
        assert attached is not None
        if how.combine:
            combine(attached, [change.adapter for change in group], how)
        layer: Any = attached.get_base_model().get_submodule(path)
        inputs = _inputs(layer, values["weight"])
        truth = layer.eval()(inputs).numpy()
        layer.merge(safe_merge=False, adapter_names=[COMBINED if how.combine else NAME])
        merged: Any = layer.get_base_layer()
        found = merged(inputs).numpy()
    values.update({name: parameter.detach() for name, parameter in merged.named_parameters()})
    return compare(truth.astype(np.float32), found.astype(np.float32), "float32", distribution=False)


def _inputs(layer: Any, weight: Any) -> Any:
    """Four random inputs of a layer: token ids of an embedding, standard normal vectors of a linear one."""
    import torch

    generator = torch.Generator().manual_seed(_SEED)
    if isinstance(layer.get_base_layer(), torch.nn.Embedding):
        return torch.randint(0, weight.shape[0], (_ROWS, 16), generator=generator)
    return torch.randn((_ROWS, layer.in_features), generator=generator)


def _at(path: str, module: Any) -> Any:
    """A model that holds one module, at its path in the whole one."""
    import torch

    *parents, last = path.split(".")
    root = torch.nn.Module()
    parent = root
    for name in parents:
        child = torch.nn.Module()
        parent.add_module(name, child)
        parent = child
    parent.add_module(last, module)
    return root


def _config(adapter: Adapter, path: str, feedforward: bool) -> Any:
    """An adapter's configuration for one module. What it trains besides its factors was replaced already."""
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(str(adapter.path))
    config.inference_mode = True
    config.target_modules = [path]
    for name, value in (("exclude_modules", None), ("modules_to_save", None), ("trainable_token_indices", None),
                        ("layers_to_transform", None), ("layers_pattern", None), ("bias", "none")):  # fmt: skip
        if hasattr(config, name):
            setattr(config, name, value)
    if hasattr(config, "feedforward_modules"):
        config.feedforward_modules = [path] if feedforward else []
    if adapter.config["peft_type"] == "ADALORA" and config.rank_pattern:
        config.rank_pattern = {name: kept for name, kept in config.rank_pattern.items() if f"{path}." in name}
    return config
