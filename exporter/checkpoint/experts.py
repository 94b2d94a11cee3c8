"""A mixture's experts as linear layers: what policies, statistics, methods and graphs then treat as any other layer.

transformers holds the experts of a layer in stacks, [experts, outputs, inputs]. `split_experts` puts a list of linear
layers in the place of each stack, which are views of its memory, and has each expert compute on the tokens that chose
it. Layers are named STACK.NUMBER, such as model.layers.0.mlp.experts.down_proj.3, in the model as in a graph of it.

transformers' own ways cannot be watched, nor are they graphs: one loops over the experts that were hit, one counts the
tokens of each in Python, and one (batched_mm) gathers a copy of the weights for every token: 1.6 GB more for a prompt
of 512 tokens of a model of 38 MB. Here the work is tokens * experts of each, and no value is larger than that times a
width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_NAME = "exporter"  # among transformers' implementations of experts


def split_experts(model: Any) -> Any:
    """Makes each expert's matrices linear layers of their own, in place; returns the model.

    Experts that transformers cannot switch to another implementation stay as they are.
    """
    import torch
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(_NAME, _compute)
    model.set_experts_implementation(_NAME)
    for experts in _switched(model).values():
        for name in _kinds(experts):
            stack, biases = getattr(experts, name).data, None
            delattr(experts, name)
            if experts.has_bias:
                biases = getattr(experts, f"{name}_bias").data
                delattr(experts, f"{name}_bias")
            layers = torch.nn.ModuleList()
            for number, matrix in enumerate(stack.mT if experts.is_transposed else stack):
                outputs, inputs = matrix.shape
                layer = torch.nn.Linear(inputs, outputs, bias=experts.has_bias, device="meta")
                layer.weight = torch.nn.Parameter(matrix)
                if biases is not None:
                    layer.bias = torch.nn.Parameter(biases[number])
                layers.append(layer)
            setattr(experts, name, layers.train(experts.training))
    return model


@contextmanager
def in_stacks(model: Any) -> Iterator[None]:
    """Within the block a split model has its class's parameters, to be saved: the layers' memory, not a copy."""
    import torch

    split = {
        (experts, name): getattr(experts, name) for experts in _switched(model).values() for name in _kinds(experts)
    }
    try:
        for (experts, name), layers in split.items():
            weights = [layer.weight.data.T if experts.is_transposed else layer.weight.data for layer in layers]
            delattr(experts, name)
            setattr(experts, name, torch.nn.Parameter(_joined(weights)))
            if experts.has_bias:
                setattr(experts, f"{name}_bias", torch.nn.Parameter(_joined([layer.bias.data for layer in layers])))
        yield
    finally:
        for (experts, name), layers in split.items():
            if experts.has_bias:
                experts._parameters.pop(f"{name}_bias", None)
            experts._parameters.pop(name, None)
            setattr(experts, name, layers)


def expert_layers(model: Any) -> dict[str, str]:
    """The linear layers that split_experts made, by name, each with the name of the stack that it is of."""
    return {
        f"{stack}.{number}": stack
        for place, experts in _switched(model).items()
        for stack, layers in ((f"{place}.{name}", getattr(experts, name)) for name in _kinds(experts))
        for number in range(len(layers))
    }


def _switched(model: Any) -> dict[str, Any]:
    """The modules of experts that compute as is said here, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "has_post_expert_norm") and module.config._experts_implementation == _NAME
    }


def _kinds(experts: Any) -> tuple[str, str]:
    """Its stacks, in the order in which they are multiplied with."""
    return "gate_up_proj" if experts.has_gate else "up_proj", "down_proj"


def _joined(parts: list[Tensor]) -> Tensor:
    """The tensor that these follow one another in."""
    first = parts[0]
    whole = first.as_strided((len(parts), *first.shape), (first.numel(), *first.stride()))
    assert whole[-1].data_ptr() == parts[-1].data_ptr(), "a layer's weight was replaced, not written to"
    return whole


def _compute(experts: Any, hidden: Any, chosen: Any, weights: Any) -> Any:
    """transformers' experts function: [T, H] with the experts chosen and their weights, [T, k] each, to [T, H].

    The pairs of a token and an expert, S = T * k, are numbered token by token. Each expert takes its pairs' tokens, in
    the order of their numbers, which may be none; what they all answer is put back into the pairs' order and summed
    over each token's.
    """
    import torch

    each, width = chosen.shape[-1], hidden.shape[-1]
    expert_of = chosen.reshape(-1)  # [S]
    pairs, answers = [], []
    for number in range(experts.num_experts):
        own = (expert_of == number).nonzero().reshape(-1)  # [n]
        rows = hidden.index_select(0, torch.div(own, each, rounding_mode="floor"))
        pairs.append(own)
        answers.append(_expert(experts, number, rows))
    order = torch.cat(pairs)
    places = torch.zeros_like(order).scatter(0, order, torch.arange(order.shape[0], device=order.device))
    answer = torch.cat(answers).index_select(0, places) * weights.reshape(-1, 1)
    return answer.reshape(-1, each, width).sum(1).to(hidden.dtype)


def _expert(experts: Any, number: int, rows: Any) -> Any:
    """What one expert makes of [n, H]."""
    first, last = (getattr(experts, name)[number] for name in _kinds(experts))
    inner = first(rows)
    answer = last(experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner))
    return experts.post_expert_norm(answer) if experts.has_post_expert_norm else answer
