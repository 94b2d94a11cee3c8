"""The linear layers of a torch model: what policies, statistics and methods speak of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def linear_layers(model: Any) -> dict[str, Any]:
    """The modules that a policy speaks of, by name, in the model's own order: Linear, and GPT-2's Conv1D."""
    import torch
    from transformers.pytorch_utils import Conv1D

    return {name: one for name, one in model.named_modules() if isinstance(one, torch.nn.Linear | Conv1D)}


def weight_of(module: Any) -> Tensor:
    """A linear layer's weight as [outputs, inputs], a view of what it holds; Conv1D stores it the other way round."""
    import torch

    weight: Tensor = module.weight.data
    return weight if isinstance(module, torch.nn.Linear) else weight.T


def shared_weights(model: Any) -> set[str]:
    """The modules whose weight is another's too, such as a head's that is tied to the embedding."""
    users: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        users.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    return {name for names in users.values() if len(names) > 1 for name in names}
